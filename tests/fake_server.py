"""An OpenAI-compatible server in this process, on loopback, that answers in vLLM's shape or fails as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from offmodel.spec.endpoint import Endpoint

MODEL = "Llama-3.1-8B-Instruct"


class Said(NamedTuple):
    """What goes over the line; ``cut`` closes it in mid-answer, ``hang`` says nothing until the server is stopped."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}
    cut: bool = False
    hang: bool = False


def answer(
    text: str | None, *, model: str = MODEL, tokens: int = 3, finish: str = "stop", log_probs: Sequence[float] | None = None
) -> Said:
    """A chat completion with all the fields that vLLM 0.11 sends."""
    scored = log_probs and {"content": [{"token": "?", "logprob": p, "bytes": [63], "top_logprobs": []} for p in log_probs]}
    message = {
        "role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": [],
        "reasoning_content": None,
    }  # fmt: skip
    choice = {"index": 0, "message": message, "logprobs": scored, "finish_reason": finish, "stop_reason": None, "token_ids": None}
    usage = {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens, "prompt_tokens_details": None}
    body = {
        "id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "service_tier": None,
        "system_fingerprint": None, "usage": usage, "prompt_logprobs": None, "prompt_token_ids": None, "kv_transfer_params": None,
    }  # fmt: skip
    return Said(json.dumps(body).encode())


def completion(text: str, *, tokens: int = 3, finish: str = "stop", log_probs: Sequence[float] | None = None) -> Said:
    """A completion with all the fields that vLLM 0.11 sends."""
    scored = log_probs and {"text_offset": [0] * tokens, "token_logprobs": log_probs, "tokens": ["?"] * tokens, "top_logprobs": []}
    choice = {
        "index": 0, "text": text, "logprobs": scored, "finish_reason": finish, "stop_reason": None, "token_ids": None,
        "prompt_logprobs": None, "prompt_token_ids": None,
    }  # fmt: skip
    usage = {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens, "prompt_tokens_details": None}
    body = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    return Said(json.dumps(body).encode())


def refusal(status: int, message: str = "overloaded", **headers: str) -> Said:
    """An error in OpenAI's shape; ``Retry_After="1"`` is a header."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
    return Said(json.dumps(body).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


TOO_LONG = refusal(400, "This model's maximum context length is 64 tokens. However, you requested 99 tokens.")
CUT = answer("Never whole.")._replace(cut=True)
HANG = Said(b"", hang=True)
Script = Callable[[Mapping[str, Any]], Said]


@dataclass
class FakeServer:
    """What it got, and what it says next; ``script`` sees the body of a request."""

    script: Script
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def endpoint(self, **more: Any) -> Endpoint:
        """Where it is."""
        return Endpoint.model_validate({"url": self.url, "model": MODEL} | more)

    @property
    def words(self) -> list[str]:
        """The last words of every prompt it got."""
        return [body["messages"][-1]["content"] for body in self.asked]


def in_turn(*said: Said, then: Said | None = None) -> Script:
    """Say one thing after the other, and then the last or another one for ever."""
    left, lock = list(said), threading.Lock()

    def script(body: Mapping[str, Any]) -> Said:
        with lock:
            return left.pop(0) if left and (len(left) > 1 or then is not None) else then or left[0]

    return script


@contextmanager
def serving(script: Script) -> Iterator[FakeServer]:
    """A server for as long as the block lasts."""
    fake = FakeServer(script)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(Said(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.asked.append(body)
                fake.headers.append(dict(self.headers))
                fake.in_flight += 1
                fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            try:
                path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
                said = fake.script(body) if self.path == path else Said(b"", 404)
            finally:
                with fake.lock:
                    fake.in_flight -= 1
            self._say(said)

        def _say(self, said: Said) -> None:
            if said.hang:
                fake.stopped.wait()
                return
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body[: len(said.body) // 2] if said.cut else said.body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
