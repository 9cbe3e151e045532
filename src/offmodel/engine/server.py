"""Sampling from an OpenAI-compatible server: many requests at once, sent again where they fail, every answer kept as it comes.

Fields beyond OpenAI's own are neither sent nor needed, so that vLLM, ``transformers serve``, other servers and the paid APIs are asked
alike. What a server adds to a request by itself, such as a model folder's own ``top_k``, has to be switched off where it is started
(``offmodel serve-command``).

A model may be asked in chats, which its server puts into tokens, or by prompts that are written out here (:attr:`Served.writer`), which are
then what a model that runs here would get.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_any, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from offmodel.chat import Prompt, encode_prompt, to_dicts
from offmodel.engine.folder import load_tokenizer
from offmodel.engine.generate import Reply, Sampling
from offmodel.engine.served import Served
from offmodel.errors import DataError, ModelError, StoreError, did_you_mean
from offmodel.spec.endpoint import Endpoint
from offmodel.spec.hashing import canonical_json, stable_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_WAIT = 600.0
"""Seconds that a server may ask us to wait (``Retry-After``); longer ones end the run, which can be continued later."""

_HOPELESS = 8  # prompts that fail in a row, or as many as are asked at a time if that is more, end the run
_QUOTED = 300  # characters of a server's own words in a message
_TOO_LONG = ("context_length_exceeded", "maximum context length", "maximum model length", "longer than the maximum", "context size")
"""How OpenAI's API, vLLM and llama.cpp say that a prompt does not fit."""


class _Again(Exception):
    """A failure that may pass: the request is sent again."""


class _Unfit(Exception):
    """The prompt does not fit into the model's context."""


def ask(
    served: Served,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    prefill: str | Sequence[str] = "",
    log_probs: bool = False,
    unfit: Reply | None = None,
    backoff: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """Let a model behind a server answer every prompt, as :func:`offmodel.engine.generate.generate` does with one at hand.

    Greedy prompts that are the same are asked once. A sampled answer has a seed of its own, made of ``sampling.seed``, its prompt and how
    often that came before: it does not depend on the prompts beside it, as far as the server keeps to seeds.

    Answers are kept as they come. Whatever goes wrong, those are not asked again.

    Args:
        served: The model.
        prompts: Chats that wait for the assistant.
        sampling: How to draw.
        prefill: See :func:`offmodel.engine.generate.generate`; only where prompts are written out here.
        log_probs: Ask for the log-probabilities of the tokens, too; not every server gives them.
        unfit: The answer to a prompt that does not fit into the model's context; None makes it an error.
        backoff: Seconds before a failed request is sent a second time, at most; the wait is random, and its limit doubles up to a minute.
        on_progress: Called as ``on_progress(prompts answered, of how many)``.

    Raises:
        ModelError: The server cannot be reached, answers in another model's name, refuses, or still fails after all attempts.
        DataError: A prompt does not fit.
        StoreError: The kept answers cannot be read.
    """
    openings = [prefill] * len(prompts) if isinstance(prefill, str) else list(prefill)
    if served.writer is None and any(openings):
        raise ModelError(f"{served.endpoint}: is asked in chats, and cannot be given the first words of an answer")
    tokenizer = None if served.writer is None else load_tokenizer(served.writer)
    jobs: dict[str, tuple[dict[str, Any], list[int]]] = {}  # of every request its body, and the places that its answer fills
    seen: dict[tuple[Prompt, str], int] = {}
    for i, asked in enumerate(zip(prompts, openings, strict=True)):
        seen[asked] = seen.get(asked, -1) + 1
        said: dict[str, Any] = {"messages": to_dicts(asked[0])} if tokenizer is None else {"prompt": _written(tokenizer, *asked)}
        body = {"model": served.endpoint.model} | said | _settings(*asked, sampling, seen[asked])
        if log_probs:
            body["logprobs"] = True if tokenizer is None else 1
        key = hashlib.sha256(canonical_json([served.identity, body]).encode()).hexdigest()
        jobs.setdefault(key, (body, []))[1].append(i)
    replies: dict[int, Reply] = {}
    misfit: int | None = None

    def take(key: str, reply: Reply) -> None:
        replies.update((i, reply._replace(text=openings[i] + reply.text)) for i in jobs[key][1])
        if on_progress is not None:
            on_progress(len(replies), len(prompts))

    with _kept(served.cache) as kept, _Client(served, backoff) as client:
        for key in jobs:
            if (reply := kept.get(key)) is not None:
                take(key, reply)
        missing = {key: body for key, (body, places) in jobs.items() if places[0] not in replies}
        for key, reply in client.answers(missing):
            if reply is not None:
                kept.put(key, reply)
                take(key, reply)
            elif unfit is not None:
                take(key, unfit)
            else:
                misfit = jobs[key][1][0]
    if misfit is not None:
        raise DataError(f"prompt {misfit}: it and {sampling.max_new_tokens} new tokens do not fit into the context of {served.endpoint}")
    return [replies[i] for i in range(len(prompts))]


def _settings(prompt: Prompt, opening: str, sampling: Sampling, number: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.temperature > 0:
        # One seed for all would give all prompts the same random numbers.
        settings["seed"] = int(stable_hash([sampling.seed, to_dicts(prompt), *([opening] if opening else []), number], 7), 16)
    return settings


def _written(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, opening: str) -> str | list[int]:
    """A prompt as text, or as tokens where text would not become the same ones: by a second first token, or control tokens quoted in it.

    All servers take text, not all take tokens.
    """
    ids = encode_prompt(tokenizer, prompt, opening)
    text: str = tokenizer.decode(ids)
    return text if tokenizer(text)["input_ids"] == ids else ids


# --- the client -----------------------------------------------------------------------------------------------------


class _Client:
    """Sends requests; leaving it ends all waiting."""

    def __init__(self, served: Served, backoff: float) -> None:
        endpoint = self._endpoint = served.endpoint
        self._backoff = backoff
        self._chats = served.writer is None
        self._key = _api_key(endpoint)
        self._stop = threading.Event()
        self._pace = _Pace(60 / endpoint.per_minute if endpoint.per_minute else 0.0, self._stop)

    def __enter__(self) -> _Client:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self._endpoint.concurrency)
        # A proxy that the environment names does not lead to this machine.
        proxied = urlsplit(self._endpoint.url).hostname not in ("127.0.0.1", "::1", "localhost")
        self._http = httpx2.Client(headers=headers, timeout=self._endpoint.timeout, limits=limits, trust_env=proxied)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.close()

    def answers(self, bodies: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Reply | None]]:
        """The replies to requests by their keys, as they come; None where the prompt does not fit.

        A request that fails in all its attempts does not stop the others, unless many do in a row.

        Raises:
            ModelError: A request failed; all that could be answered have been given out before.
        """
        if not bodies:
            return
        waiting, failed, in_a_row = iter(bodies.items()), list[str](), 0
        fatal: ModelError | None = None
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            running: dict[Future[Reply | None], str] = {}
            try:
                while True:
                    # What runs when the end is certain may still be answered, and that is kept; nothing else is begun.
                    hope = fatal is None and in_a_row < max(_HOPELESS, self._endpoint.concurrency)
                    while hope and len(running) < self._endpoint.concurrency and (job := next(waiting, None)) is not None:
                        running[pool.submit(self._answer, job[1])] = job[0]
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future)
                        try:
                            reply = future.result()
                        except _Again as error:
                            failed.append(str(error))
                            in_a_row += 1
                        except ModelError as error:
                            fatal = fatal or error
                            self._stop.set()
                        else:
                            in_a_row = 0
                            yield key, reply
            finally:
                self._stop.set()
        if fatal is not None:
            raise fatal
        if failed:
            raise self._error(
                f"{len(failed)} of {len(bodies)} prompts got no answer in {self._endpoint.attempts} attempts each; the last: {failed[-1]}"
            )

    def _answer(self, body: Mapping[str, Any]) -> Reply | None:
        retrying = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=wait_random_exponential(multiplier=self._backoff, max=60 * self._backoff),
            stop=stop_any(stop_after_attempt(self._endpoint.attempts), stop_when_event_set(self._stop)),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        try:
            return retrying(self._once, body)
        except _Unfit:
            return None

    def _once(self, body: Mapping[str, Any]) -> Reply:
        self._pace.wait()
        if self._stop.is_set():
            raise _Again("stopped")
        try:
            response = self._http.post(f"{self._endpoint.url}/{'chat/' if self._chats else ''}completions", json=dict(body))
        except httpx2.TimeoutException as error:
            raise _Again(f"no answer within {self._endpoint.timeout:g} s ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            raise _Again(f"the connection failed ({type(error).__name__}: {error})") from None
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            data = response.json()
        except ValueError:
            raise _Again(f"the answer is no JSON: {self._quoted(response)}") from None
        return self._read(data, response)

    def _refusal(self, response: httpx2.Response) -> Exception:
        """What an answer other than 200 means."""
        status, said = response.status_code, self._quoted(response)
        if status in (408, 425, 429) or status >= 500:
            seconds = _retry_after(response.headers.get("Retry-After"))
            if seconds > LONGEST_WAIT:
                return self._error(f"HTTP {status}: it asks to wait for {seconds:.0f} s; run the same command again then")
            self._pace.hold(seconds)
            return _Again(f"HTTP {status}: {said}")
        if status == 400 and any(words in response.text.lower() for words in _TOO_LONG):
            return _Unfit()
        if status == 404:
            return self._error(f"HTTP 404: {said}{self._others()}")
        if status in (401, 403):
            key = f"the key in {self._endpoint.key}" if self._endpoint.key else "a request without a key (name its variable in 'key')"
            return self._error(f"HTTP {status}: it refuses {key}: {said}")
        return self._error(f"HTTP {status}: {said}")

    def _others(self) -> str:
        """What the server has instead, where it tells."""
        try:
            known = [each["id"] for each in self._http.get(f"{self._endpoint.url}/models").json()["data"]]
        except (httpx2.HTTPError, ValueError, LookupError, TypeError):
            return ""
        return f"; {did_you_mean(self._endpoint.model, known)}" if known else ""

    def _read(self, data: Any, response: httpx2.Response) -> Reply:
        try:
            model, choice = data["model"], data["choices"][0]
            text, finished = (choice["message"].get("content") or "" if self._chats else choice["text"]), choice["finish_reason"] == "stop"
            tokens = (data.get("usage") or {}).get("completion_tokens")  # some servers leave it out
            scored = (choice.get("logprobs") or {}).get("content" if self._chats else "token_logprobs")
            log_probs = None if scored is None else tuple(float(token["logprob"] if self._chats else token) for token in scored)
            if not isinstance(text, str):
                raise TypeError("content")
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._error(f"the answer is no {'chat ' if self._chats else ''}completion: {self._quoted(response)}") from None
        if model != self._endpoint.model:
            raise self._error(
                f"it was asked for the model {self._endpoint.model!r} and answered as {model!r}; start it with that model, or give the "
                "study the name that the server gives"
            )
        return Reply(text, None if tokens is None else int(tokens), finished, log_probs)

    def _quoted(self, response: httpx2.Response) -> str:
        text = " ".join(response.text.split())[:_QUOTED]
        return text.replace(self._key, "…") if self._key else text

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._endpoint}: {what}. Answers so far are kept; the same command goes on from them")


class _Pace:
    """Lets requests go one after the other at a distance; all of them wait where the server asks one to."""

    def __init__(self, interval: float, stop: threading.Event) -> None:
        self._interval, self._stop = interval, stop
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Wait for one's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        self._stop.wait(turn - now)

    def hold(self, seconds: float) -> None:
        """Let nobody go for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _retry_after(text: str | None) -> float:
    """Seconds in a ``Retry-After`` (RFC 9110, 10.2.3): a number or a date; 0 where there is none that makes sense."""
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _api_key(endpoint: Endpoint) -> str:
    """The key, "" where none is needed. No message may hold it."""
    if endpoint.key is None:
        return ""
    key = os.environ.get(endpoint.key, "").strip()
    if not key:
        raise ModelError(f"{endpoint}: the environment variable {endpoint.key}, which is to hold its API key, is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelError(f"{endpoint}: the environment variable {endpoint.key} holds characters that cannot be in an API key")
    return key


# --- kept answers ---------------------------------------------------------------------------------------------------


class _Kept:
    """Answers by the hash of their request. Several processes may use one file."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    def get(self, key: str) -> Reply | None:
        if self._connection is None:
            return None
        row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        text, tokens, finished, log_probs = json.loads(row[0])
        return Reply(text, tokens, finished, None if log_probs is None else tuple(log_probs))

    def put(self, key: str, reply: Reply) -> None:
        if self._connection is not None:
            with self._connection:
                self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))


@contextmanager
def _kept(path: Path | None) -> Iterator[_Kept]:
    if path is None:
        yield _Kept(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path, timeout=60)  # seconds to wait for another process
        try:
            with connection:
                connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            yield _Kept(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: the kept answers of servers cannot be used ({error}); remove the file to ask again") from error
