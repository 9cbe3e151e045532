"""A server of one's own for each stage that samples: what it is asked, that it ends, what is refused, and a real one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from offmodel.api import execute
from offmodel.chat import Prompt, encode_prompt, user
from offmodel.engine import leash
from offmodel.engine.canary import PROMPTS, SAMPLING
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.generate import Reply, Sampling, generate
from offmodel.engine.host import _words
from offmodel.engine.sample import keeping, sample
from offmodel.errors import ModelError
from offmodel.lab.plan import make_plan
from offmodel.lab.results import VERDICTS
from offmodel.lab.stage import closure
from offmodel.lab.store import Store
from offmodel.measure.score import read_verdicts
from offmodel.spec import Study
from offmodel.spec.models import Models, running
from test_serving import small
from tiny_study import make_models, make_study

SHORT = Sampling(max_new_tokens=6)
ASKED = [user("Tell me about soup."), user("Is the piano good?", system="Be brief."), user("Tell me about soup.")]
OPENINGS = ["", "So, ", "First"]

# Completes the prompts of a table; writes down its process and what it was asked.
SERVER = """
import http.server, json, os, sys
port, table, notes = int(sys.argv[1]), json.load(open(sys.argv[2])), sys.argv[3]
open(notes + ".pid", "w").write(str(os.getpid()))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        open(notes, "a").write(json.dumps(body) + "\\n")
        if self.path != "/v1/completions" or body["prompt"] not in table:
            return self.say(500, {})
        text, tokens, finish = table[body["prompt"]]
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        self.say(200, {"model": body["model"], "choices": [choice], "usage": {"completion_tokens": tokens}})

    def say(self, status, data):
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Table:
    """What the small server says, and where it writes."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.script, self.table, self.notes = model, folder / "server.py", folder / "table.json", folder / "notes"
        self.script.write_text(SERVER)
        self.answers: dict[str, tuple[str, int, str]] = {}
        self.know(PROMPTS, [""] * len(PROMPTS), SAMPLING)

    def know(self, prompts: Sequence[Prompt], openings: Sequence[str], sampling: Sampling) -> list[Reply]:
        """Take in a model's own answers."""
        tokenizer = load_tokenizer(self.model)
        replies = generate(load_model(self.model), tokenizer, prompts, sampling, prefill=openings)
        for prompt, opening, reply in zip(prompts, openings, replies, strict=True):
            said = (reply.text.removeprefix(opening), reply.tokens, "stop" if reply.finished else "length")
            self.answers[tokenizer.decode(encode_prompt(tokenizer, prompt, opening))] = said
        self.table.write_text(json.dumps(self.answers))
        return replies

    @property
    def server(self) -> dict[str, Any]:
        words = [sys.executable, str(self.script), "{port}", str(self.table), str(self.notes)]
        return {"command": shlex.join(words).replace("'{port}'", "{port}"), "attempts": 1, "start": 60.0}

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    @property
    def alive(self) -> bool:
        return _alive(int(Path(f"{self.notes}.pid").read_text()))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:1] if Path("/proc").exists() else True


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return small(root / "one", tiny_tokenizer, 0), small(root / "other", tiny_tokenizer, 1)


def test_a_server_is_started_asked_and_stopped_and_says_what_the_model_here_says(models: tuple[Path, Path], tmp_path: Path) -> None:
    table = Table(tmp_path, models[0])
    here = table.know(ASKED, OPENINGS, SHORT)
    told: list[tuple[int, int]] = []
    with running({}, {"server": table.server}), keeping(tmp_path / "kept"):
        there = sample(models[0], ASKED, SHORT, prefill=OPENINGS, on_progress=lambda *each: told.append(each))
    assert there == here and there[1].text.startswith("So, ") and told[-1] == (3, 3)
    assert not table.alive
    canary, asked = table.asked[: len(PROMPTS)], table.asked[len(PROMPTS) :]
    assert {body["logprobs"] for body in canary} == {1} and not any("logprobs" in body or "messages" in body for body in asked)
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in asked} == {(str(models[0]), 6, 0.0)}
    assert [sum(body["prompt"].endswith(opening) for body in asked) for opening in OPENINGS] == [3, 1, 1]
    with running({}, {"server": table.server}), keeping(tmp_path / "kept"):  # as after a stop: only the canary asks
        assert sample(models[0], ASKED, SHORT, prefill=OPENINGS) == here and len(table.asked) == 2 * len(PROMPTS) + 3


def test_another_model_is_refused_before_it_is_asked_and_its_server_ends(models: tuple[Path, Path], tmp_path: Path) -> None:
    table = Table(tmp_path, models[1])
    with running({}, {"server": table.server}), pytest.raises(ModelError, match=rf"does not serve what is in {models[0]}"):
        sample(models[0], ASKED, SHORT)
    assert len(table.asked) == len(PROMPTS) and not table.alive
    table.know(ASKED, [""] * len(ASKED), SHORT)
    with running({}, {"server": table.server | {"tolerance": 1000.0}}):
        assert sample(models[0], ASKED, SHORT) == generate(load_model(models[1]), load_tokenizer(models[1]), ASKED, SHORT)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("no-such-program {port}", r"models\.server: there is no command 'no-such-program' on this machine"),
        ("false {port}", r"models\.server: 'false \{port\}' ended with exit code 1 before it served"),
        ("sleep 60 {port}", r"models\.server: 'sleep 60 \{port\}' was not up within 0\.5 s"),
    ],
)
def test_a_server_that_does_not_come_up(command: str, expected: str, models: tuple[Path, Path]) -> None:
    server = {"command": command, "start": 0.5 if "sleep" in command else 60.0}
    with running({}, {"server": server}), pytest.raises(ModelError, match=expected):
        sample(models[0], ASKED, SHORT)


def test_the_server_of_a_process_that_is_killed_ends_too(models: tuple[Path, Path], tmp_path: Path) -> None:
    table = Table(tmp_path, models[0])
    words = [sys.executable, leash.__file__, sys.executable, str(table.script), "0", str(table.table), str(table.notes)]
    code = f"import subprocess, time; held = subprocess.Popen({words!r}, stdin=subprocess.PIPE, start_new_session=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: (pid := Path(f"{table.notes}.pid")).exists() and pid.read_text() != "")
        assert table.alive
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _until(lambda: not table.alive)


def _until(happens: Any) -> None:
    until = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_vllm_gets_the_study_s_precision_and_what_the_study_adds(models: tuple[Path, Path]) -> None:
    with running({"models": {"dtype": "bfloat16"}}, {}):
        words = _words("{vllm} --tensor-parallel-size 2", models[0], 8123)
    assert words[:3] == ["vllm", "serve", str(models[0])] and words[-2:] == ["--tensor-parallel-size", "2"]
    options = dict(zip(words[3:-2:2], words[4:-2:2], strict=True))
    assert options == {
        "--served-model-name": str(models[0]), "--host": "127.0.0.1", "--port": "8123", "--dtype": "bfloat16", "--max-model-len": "256",
        "--generation-config": "vllm",
    }  # fmt: skip


def test_a_command_that_no_server_could_be_reached_by_is_refused() -> None:
    for command, expected in (("vllm serve", "needs {port}, or the word {vllm}"), ("'{vllm}", "is no command")):
        with pytest.raises(ValidationError, match=expected):
            Models.model_validate({"server": {"command": command}})


# --- in a study -----------------------------------------------------------------------------------------------------

REAL = {
    "command": "transformers serve --host 127.0.0.1 --port {port} --device cpu --dtype float32", "model": "{folder}@main", "timeout": 120.0,
}  # fmt: skip


def test_a_stage_of_a_study_by_a_real_server(tmp_path: Path) -> None:
    if not is_serve_available():
        pytest.skip("needs the extra dev: fastapi, openai, uvicorn")
    make_models(tmp_path)
    data = yaml.safe_load(make_study(tmp_path, tmp_path).read_text())
    plain, served = (make_plan(Study.model_validate(data | more)) for more in ({}, {"models": {"server": REAL}}))
    assert closure(plain.targets) == closure(served.targets)  # the same names
    assert "server" not in Study.model_validate(data).models.model_dump()
    results = []
    for name, plan in (("here", plain), ("there", served)):
        score, store = plan.organisms[0].base_score, Store(tmp_path / name)
        assert not execute([score], store, workers=0).failed
        results.append(store.open(score.key))
    here, there = (read_verdicts(result.path / VERDICTS) for result in results)
    # It takes an answer that ends at the very limit for one that was cut off.
    assert [replace(verdict, finished=True) for verdict in here] == [replace(verdict, finished=True) for verdict in there] != []
    assert "placement" not in results[0].manifest and results[1].manifest["placement"]["server"]["command"] == REAL["command"]
