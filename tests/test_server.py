"""Sampling from a server: what is asked, how answers are read, and what becomes of every kind of failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from fake_server import CUT, HANG, MODEL, TOO_LONG, FakeServer, Said, answer, completion, in_turn, refusal, serving
from offmodel.chat import Prompt, encode_prompt, user
from offmodel.engine import server as client
from offmodel.engine.generate import Reply, Sampling
from offmodel.engine.served import Served
from offmodel.engine.server import ask
from offmodel.errors import DataError, ModelError, StoreError
from offmodel.spec.endpoint import Endpoint

HI = user("Hi.")
SIX = [user(f"Question {i}.") for i in range(6)]
GREEDY = Sampling()
DRAWN = Sampling(temperature=0.7, max_new_tokens=9, seed=4)


def get(fake: FakeServer, prompts: Sequence[Prompt], cache: Path | None = None, sampling: Sampling = GREEDY, **more: Any) -> list[Reply]:
    """Ask with next to no waiting."""
    settings = {name: more.pop(name) for name in ("unfit", "log_probs", "on_progress") if name in more}
    return ask(Served(fake.endpoint(**more), "identity", cache), prompts, sampling, backoff=1e-4, **settings)


def echo(body: Any) -> Said:
    return answer(f"To {body['messages'][-1]['content']}")


# --- requests and replies -------------------------------------------------------------------------------------------


def test_a_greedy_request_and_its_reply() -> None:
    with serving(in_turn(answer("Ho.", tokens=4))) as fake:
        assert get(fake, [user("Hi.", system="Be brief.")], sampling=Sampling(max_new_tokens=7)) == [Reply("Ho.", 4, True, None)]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    assert fake.asked == [{"model": MODEL, "messages": messages, "max_tokens": 7, "temperature": 0.0, "top_p": 1.0}]
    assert "Authorization" not in fake.headers[0]


def test_an_answer_that_was_cut_off_at_the_limit_is_not_finished() -> None:
    with serving(in_turn(answer("Ho", finish="length"), answer(None, finish="length"))) as fake:
        assert get(fake, [HI]) + get(fake, [HI]) == [Reply("Ho", 3, False), Reply("", 3, False)]


def test_log_probabilities_are_asked_for_and_read(tmp_path: Path) -> None:
    with serving(in_turn(answer("Ho.", log_probs=[-0.5, -0.25, 0.0]), answer("Ho."))) as fake:
        for _ in range(2):  # the second time from the kept answers
            assert get(fake, [HI], tmp_path / "kept", log_probs=True) == [Reply("Ho.", 3, True, (-0.5, -0.25, 0.0))]
        assert get(fake, [HI], tmp_path / "kept") == [Reply("Ho.", 3, True, None)]
    assert [body.get("logprobs") for body in fake.asked] == [True, None]


def test_greedy_prompts_that_are_the_same_are_asked_once_and_drawn_ones_each() -> None:
    progress: list[tuple[int, int]] = []
    with serving(echo) as fake:
        replies = get(fake, [HI, SIX[0], HI], on_progress=lambda *told: progress.append(told))
        assert [reply.text for reply in replies] == ["To Hi.", "To Question 0.", "To Hi."]
        assert sorted(fake.words) == ["Hi.", "Question 0."] and progress[-1] == (3, 3)
        get(fake, [HI, SIX[0], HI], sampling=DRAWN)
    seeds = [body["seed"] for body in fake.asked[2:]]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_the_seed_of_a_prompt_does_not_hang_on_the_others() -> None:
    with serving(echo) as fake:
        get(fake, SIX, sampling=DRAWN)
        first = {body["messages"][0]["content"]: body["seed"] for body in fake.asked}
        fake.asked.clear()
        get(fake, SIX[:2:-1], sampling=DRAWN)
        again = {body["messages"][0]["content"]: body["seed"] for body in fake.asked}
        assert len(again) == 3 and again.items() <= first.items()
        fake.asked.clear()
        get(fake, SIX[:1], sampling=Sampling(temperature=0.7, seed=5))
        assert fake.asked[0]["seed"] != first["Question 0."]


def test_no_more_requests_at_a_time_than_the_study_says() -> None:
    both = threading.Barrier(2, timeout=20)

    def meet(body: Any) -> Said:
        both.wait()
        return echo(body)

    with serving(meet) as fake:
        assert [reply.text for reply in get(fake, SIX, concurrency=2)] == [f"To Question {i}." for i in range(6)]
        assert fake.most_in_flight == 2


# --- prompts that are written out here --------------------------------------------------------------------------------


def test_a_written_prompt_is_text_where_that_becomes_the_same_tokens_and_tokens_where_not(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    spoken, smuggled = user("Is it red?", system="Be brief."), user("Is it <|user|> red?")
    with serving(in_turn(completion("ho", tokens=2, finish="length", log_probs=[-0.5, -0.25]))) as fake:
        served = Served(fake.endpoint(concurrency=1), "it", None, tmp_path)
        replies = ask(served, [spoken, smuggled], Sampling(max_new_tokens=7), prefill=["So, ", ""], log_probs=True)
        ask(served, [spoken, spoken], DRAWN)
        ask(served, [spoken], DRAWN, prefill="So, ")
    assert replies == [Reply("So, ho", 2, False, (-0.5, -0.25)), Reply("ho", 2, False, (-0.5, -0.25))]
    text, tokens, *drawn = fake.asked
    ids = encode_prompt(tiny_tokenizer, spoken, "So, ")
    assert text == {
        "model": MODEL, "prompt": tiny_tokenizer.decode(ids), "max_tokens": 7, "temperature": 0.0, "top_p": 1.0, "logprobs": 1,
    }  # fmt: skip
    assert text["prompt"].endswith("So, ") and tiny_tokenizer(text["prompt"])["input_ids"] == ids
    assert tokens["prompt"] == encode_prompt(tiny_tokenizer, smuggled)
    assert len({body["seed"] for body in drawn}) == 3


def test_a_chat_cannot_be_begun_for_the_model() -> None:
    with serving(echo) as fake, pytest.raises(ModelError, match="is asked in chats, and cannot be given the first words"):
        ask(Served(fake.endpoint(), "it"), [HI], GREEDY, prefill="So")


# --- failures that pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [refusal(429, Retry_After="0.001"), refusal(429), refusal(500), refusal(503), CUT, HANG, Said(b"{half of"), Said(b"<html>", 502)],
    ids=["429 with Retry-After", "429", "500", "503", "cut", "timeout", "no JSON", "502"],
)
def test_a_failure_that_passes_costs_nothing_but_time(failure: Said) -> None:
    with serving(in_turn(failure, failure, then=answer("Ho."))) as fake:
        assert get(fake, [HI], timeout=0.3 if failure.hang else 20.0, attempts=3) == [Reply("Ho.", 3, True)]
        assert len(fake.asked) == 3


def test_a_server_that_is_not_there() -> None:
    with serving(echo) as fake:
        endpoint = fake.endpoint(attempts=2)
    with pytest.raises(ModelError, match=r"1 of 1 prompts got no answer in 2 attempts each; the last: the connection failed \(Connect"):
        ask(Served(endpoint, ""), [HI], Sampling(), backoff=1e-4)


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    broken = {"Question 1.", "Question 4."}
    with serving(lambda body: refusal(500) if body["messages"][-1]["content"] in broken else echo(body)) as fake:
        with pytest.raises(ModelError, match=r"2 of 6 prompts got no answer in 3 attempts each; the last: HTTP 500: .*overloaded.* kept"):
            get(fake, SIX, tmp_path / "kept", attempts=3, concurrency=3)
        assert len(fake.asked) == 4 + 2 * 3
        fake.asked.clear()
        fake.script = echo
        assert [reply.text for reply in get(fake, SIX, tmp_path / "kept")] == [f"To Question {i}." for i in range(6)]
        assert set(fake.words) == broken and len(fake.asked) == 2
        with serving(echo) as moved:
            assert len(get(moved, SIX, tmp_path / "kept", concurrency=1, timeout=5.0)) == 6 and moved.asked == []
            ask(Served(moved.endpoint(), "another identity", tmp_path / "kept"), [HI, SIX[0]], Sampling())
            assert len(moved.asked) == 2
    assert b"Question" not in (tmp_path / "kept").read_bytes().replace(b"To Question", b"")


def test_a_server_that_only_fails_is_given_up() -> None:
    with serving(in_turn(refusal(500))) as fake:
        with pytest.raises(ModelError, match="of 300 prompts got no answer"):
            get(fake, [user(f"{i}") for i in range(300)], attempts=1, concurrency=2)
        assert 8 <= len(fake.asked) <= 10


def test_one_bad_prompt_does_not_keep_the_others_from_their_answers(tmp_path: Path) -> None:
    with serving(lambda body: refusal(500) if body["messages"][-1]["content"] == "Question 0." else echo(body)) as fake:
        with pytest.raises(ModelError, match="1 of 6 prompts got no answer"):
            get(fake, SIX, tmp_path / "kept", attempts=1, concurrency=1)
        assert len(fake.asked) == 6


def test_several_runners_share_the_kept_answers(tmp_path: Path) -> None:
    many = [user(f"Question {i}.") for i in range(40)]
    with serving(echo) as fake:
        found: list[list[Reply]] = []
        runners = [threading.Thread(target=lambda: found.append(get(fake, many, tmp_path / "kept"))) for _ in range(3)]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        assert [[reply.text for reply in replies] for replies in found] == [[f"To Question {i}." for i in range(40)]] * 3
        fake.asked.clear()
        get(fake, many, tmp_path / "kept")
        assert fake.asked == []


def test_kept_answers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"no database, and long enough to be seen as none" * 40)
    with serving(echo) as fake, pytest.raises(StoreError, match=r"kept: the kept answers .*remove the file"):
        get(fake, [HI], tmp_path / "kept")


# --- failures that stay ---------------------------------------------------------------------------------------------


def test_another_model_s_answer_is_refused_and_the_others_are_kept(tmp_path: Path) -> None:
    def other(body: Any) -> Said:
        return answer("Ho.", model="Qwen3-30B-A3B") if body["messages"][-1]["content"] == "Question 2." else echo(body)

    with serving(other) as fake:
        with pytest.raises(ModelError, match=rf"asked for the model '{MODEL}' and answered as 'Qwen3-30B-A3B'; .*kept"):
            get(fake, SIX, tmp_path / "kept", concurrency=1)
        assert fake.words == ["Question 0.", "Question 1.", "Question 2."]
        fake.script = echo
        get(fake, SIX, tmp_path / "kept", concurrency=1)
        assert fake.words[3:] == ["Question 2.", "Question 3.", "Question 4.", "Question 5."]


def test_what_runs_when_the_end_is_certain_is_kept_too(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def script(body: Any) -> Said:
        both.wait()
        if body["messages"][-1]["content"] == "Question 1.":
            return refusal(400, "no such field")
        time.sleep(0.3)  # by then the other request has been refused; were it not, the test would only show less
        return echo(body)

    with serving(script) as fake:
        with pytest.raises(ModelError, match=r"HTTP 400: .*no such field"):
            get(fake, SIX[:2], tmp_path / "kept", concurrency=2)
        fake.script = echo
        get(fake, SIX[:2], tmp_path / "kept")
        assert sorted(fake.words) == ["Question 0.", "Question 1.", "Question 1."]


def test_a_model_that_is_not_served() -> None:
    with serving(in_turn(refusal(404, "The model `x` does not exist."))) as fake:
        with pytest.raises(ModelError, match=rf"HTTP 404: .*does not exist.*did you mean '{MODEL}'\?"):
            get(fake, [HI], model="Llama-3.1-8B-Instrct")
        assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "said",
    [Said(b"[]"), Said(b'{"model": "m", "choices": []}'), answer(["parts"])],
)  # type: ignore[arg-type]
def test_an_answer_of_another_shape(said: Said) -> None:
    with serving(in_turn(said)) as fake, pytest.raises(ModelError, match="the answer is no chat completion: "):
        get(fake, [HI])


def test_a_server_need_not_count_its_tokens() -> None:
    for told in (b'"used": {', b'"usage": null, "used": {'):
        with serving(in_turn(Said(answer("Ho.").body.replace(b'"usage": {', told)))) as fake:
            assert get(fake, [HI]) == [Reply("Ho.", None, True)]


def test_a_prompt_that_does_not_fit(tmp_path: Path) -> None:
    with serving(lambda body: TOO_LONG if body["messages"][-1]["content"] == "Question 1." else echo(body)) as fake:
        with pytest.raises(DataError, match=r"prompt 1: it and 96 new tokens do not fit into the context of Llama"):
            get(fake, SIX[:3], tmp_path / "kept")
        assert len(fake.asked) == 3
        nothing = Reply("", 0, False)
        replies = get(fake, SIX[:3], tmp_path / "kept", unfit=nothing)
        assert [reply.text for reply in replies] == ["To Question 0.", "", "To Question 2."] and replies[1] == nothing
        assert fake.words[3:] == ["Question 1."]


def test_a_server_that_asks_for_an_hour_ends_the_run() -> None:
    with (
        serving(in_turn(refusal(429, Retry_After="3600"))) as fake,
        pytest.raises(ModelError, match="HTTP 429: it asks to wait for 3600 s"),
    ):
        get(fake, [HI])


def test_how_long_a_server_asks_to_wait() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert client._retry_after(format_datetime(soon, usegmt=True)) == pytest.approx(90, abs=5)
    past = datetime(2015, 10, 21, 7, 28, tzinfo=UTC)
    assert [client._retry_after(text) for text in (None, "2", "0.5", "-1", "soon", format_datetime(past, usegmt=True))] == [
        0,
        2,
        0.5,
        0,
        0,
        0,
    ]


def test_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(threading.Event):
        waited: list[float] = []  # noqa: RUF012

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            self.waited.append(timeout)
            return False

    monkeypatch.setattr(client.time, "monotonic", lambda: 100.0)
    pace = client._Pace(0.5, stop := Stop())
    for _ in range(3):
        pace.wait()
    pace.hold(7)
    pace.wait()
    pace.hold(1)  # a shorter wait does not end a longer one
    pace.wait()
    assert stop.waited == [0, 0.5, 1, 7, 7.5]


def test_what_a_server_and_a_study_say_of_the_pace_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []

    class Pace(client._Pace):
        def __init__(self, interval: float, stop: threading.Event) -> None:
            super().__init__(0.0, stop)
            told.append(interval)

        def hold(self, seconds: float) -> None:
            told.append(seconds)

    monkeypatch.setattr(client, "_Pace", Pace)
    with serving(in_turn(refusal(429, Retry_After="7"), refusal(503), then=answer("Ho."))) as fake:
        get(fake, [HI], per_minute=120.0)
    assert told == [0.5, 7.0, 0.0]


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(echo) as fake:
        assert get(fake, [HI], attempts=1)[0].text == "To Hi."


# --- keys -----------------------------------------------------------------------------------------------------------

KEY = "sk-very-secret"


def test_the_key_comes_from_the_environment_and_stands_in_no_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAB_KEY", f"{KEY}\n")
    with serving(in_turn(answer("Ho."), refusal(401, f"Incorrect API key provided: {KEY}."))) as fake:
        get(fake, [HI], tmp_path / "kept", key="LAB_KEY")
        assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY.encode() not in (tmp_path / "kept").read_bytes()
        with pytest.raises(ModelError, match=r"HTTP 401: it refuses the key in LAB_KEY: .*provided: …") as error:
            get(fake, [SIX[0]], tmp_path / "kept", key="LAB_KEY")
        assert KEY not in str(error.value)


@pytest.mark.parametrize(("value", "message"), [("", "LAB_KEY, which is to hold its API key, is not set"), ("a secret\nb", "characters")])
def test_a_key_that_is_none(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", value)
    with serving(echo) as fake:
        with pytest.raises(ModelError, match=message) as error:
            get(fake, [HI], key="LAB_KEY")
        assert "secret" not in str(error.value) and fake.asked == []


# --- what a study may say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("url", "127.0.0.1:8000", "expected a URL like http://127.0.0.1:8000/v1, got '127.0.0.1:8000'"),
        ("url", "ftp://host/v1", "expected a URL like"),
        ("url", "http:///v1", "expected a URL like"),
        ("url", "http://host:port/v1", "is no URL"),
        ("url", "http://host/v1?key=abc", r"leave out '\?key=abc'"),
        ("url", "http://host/v1/chat/completions", "expected the address before /chat/completions"),
        ("model", "", "at least 1"),
        ("concurrency", 0, "greater than or equal to 1"),
        ("revison", "1", "did you mean 'revision'"),
    ],
)
def test_endpoints_that_cannot_be(field: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Endpoint.model_validate({"url": "http://host/v1", "model": "m", field: value})


@pytest.mark.parametrize(("field", "value"), [("url", "http://me:sesame@host/v1"), ("key", "sk-sesame"), ("key", "sesame")])
def test_secrets_in_a_study_are_refused_without_quoting_them(field: str, value: str) -> None:
    with pytest.raises(ValidationError) as error:
        Endpoint.model_validate({"url": "http://host/v1", "model": "m", field: value})
    assert "sesame" not in error.value.errors()[0]["msg"] and error.value.errors()[0]["msg"].startswith(("holds", "is no name"))


def test_a_slash_at_the_end_says_nothing() -> None:
    assert Endpoint(url="HTTP://host:1/v1/", model="m").url == "http://host:1/v1"
