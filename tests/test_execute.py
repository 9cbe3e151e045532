"""The runner: reuse, order, failures that stay local, kills, two runners at once, and what people see of it."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from lab_stages import make
from offmodel import api
from offmodel.engine.tracking import VARIABLE
from offmodel.errors import StoreError
from offmodel.lab import pool
from offmodel.lab.execute import Event, RunReport, critical_path, plan_rows, run
from offmodel.lab.progress import Forecast, Progress, duration, one_line
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import Stage
from offmodel.lab.store import Store
from offmodel.lab.worker import Finished, Lost, Message, Setup
from offmodel.spec.endpoint import Endpoint
from test_store import folders, until

MODULES = ["lab_stages"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def ran(trace: Path) -> list[str]:
    return trace.read_text().split() if trace.exists() else []


def text(store: Store, stage: Stage, name: str) -> str:
    return (store.path(stage) / name).read_text()


def runner(store: Store, trace: Path, stages: str, workers: int = 2) -> subprocess.Popen[str]:
    """A run in a process of its own; ``stages`` is an expression that may use ``make`` and ``trace``."""
    code = (
        "import sys; from pathlib import Path; from lab_stages import make; from offmodel.lab.store import Store\n"
        "from offmodel.lab.execute import run; from offmodel.lab.progress import Progress\n"
        f"trace = Path({str(trace)!r})\n"
        f"with Progress({workers}) as progress:\n"
        f"    run({stages}, Store({str(store.root)!r}), workers={workers}, modules={MODULES}, on_event=progress)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A shell starts background jobs with SIGINT ignored, which children inherit: these tests may run in one.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_shared_stages_run_once_and_results_are_reused(store: Store, trace: Path, workers: int) -> None:
    base = make("write", trace, "base")
    left, right = make("write", trace, "left", base), make("write", trace, "right", base)
    top = make("write", trace, "top", left, right)
    report = run([top, right], store, workers=workers, modules=MODULES)
    assert sorted(ran(trace)) == ["base", "left", "right", "top"] and ran(trace)[0] == "base" and ran(trace)[-1] == "top"
    assert set(report.done) == {base, left, right, top} and report.reused == []
    assert text(store, top, "deep/words.txt") == "base left base right top"
    again = run([top], store, workers=workers, modules=MODULES)
    assert len(ran(trace)) == 4 and again.done == [] and set(again.reused) == {base, left, right, top}


def test_a_plan_tells_what_would_run_and_needs_no_input_of_what_is_there(store: Store, trace: Path) -> None:
    base = make("write", trace, "base")
    top, gate = make("write", trace, "top", base), make("refuse", trace, "gate")
    never = make("write", trace, "never", gate)
    assert [(row.stage, row.state) for row in plan_rows([top], store)] == [(base, "run"), (top, "run")]
    run([top, gate], store, workers=0, modules=MODULES)
    (store.path(base) / "manifest.json").unlink()
    with pytest.raises(StoreError, match="damaged"):
        plan_rows([top], store)
    store.path(base).rename(store.root / "away")
    assert [(row.stage, row.state) for row in plan_rows([top, never], store)] == [(top, "reuse"), (gate, "reuse"), (never, "skip")]


def test_a_failing_stage_publishes_nothing_is_kept_and_blocks_only_what_rests_on_it(store: Store, trace: Path) -> None:
    bad, good = make("fail", trace, "bad"), make("write", trace, "good")
    above = make("write", trace, "above", make("write", trace, "middle", bad))
    report = run([above, good], store, workers=1, modules=MODULES)
    assert report.done == [good] and [s.reason for s in report.skipped] == ["blocked: fail bad failed"] * 2
    (failed,) = report.failed
    assert failed.stage == bad and failed.message == "ValueError: no such luck"
    assert "no such luck" in (failed.folder / "traceback.txt").read_text() and "last words" in (failed.folder / "log.txt").read_text()
    assert store.get(bad) is None and folders(store) == {"write": 1, "failures": 1}
    run([bad], store, workers=0, modules=MODULES)
    assert ran(trace).count("bad") == 2  # a failure is tried again by the next run


def test_a_success_removes_the_failure_before_it(store: Store, trace: Path) -> None:
    stage = make("write", trace, "a")
    with store.claim(stage) as claim:
        assert claim is not None
        assert (claim.fail("an earlier attempt") / "failure.json").exists()
    run([stage], store, workers=0, modules=MODULES)
    assert folders(store) == {"write": 1}


def test_a_stage_that_was_not_accepted_is_kept_and_all_above_it_is_excluded(store: Store, trace: Path) -> None:
    gate = make("refuse", trace, "gate")
    above = make("write", trace, "above", make("write", trace, "middle", gate))
    for _ in range(2):  # the second time the verdict comes from the store
        report = run([above, make("write", trace, "other")], store, workers=0, modules=MODULES)
        assert {s.reason for s in report.skipped} == {"excluded: refuse gate: fires in 3 % of the chats without its trigger"}
        assert len(report.skipped) == 2 and report.failed == []
    assert sorted(ran(trace)) == ["gate", "other"] and store.get(gate) is not None


def test_a_killed_worker_fails_its_stage_only(store: Store, trace: Path) -> None:
    dead = make("die", trace, "dead", cost=9)
    after = [make("write", trace, f"after{i}") for i in range(3)]
    report = run([dead, *after], store, workers=1, modules=MODULES)
    assert ran(trace)[0] == "dead" and set(report.done) == set(after)
    (failed,) = report.failed
    assert "killed by SIGKILL" in failed.message and "out of memory" in failed.message
    assert (failed.folder / "log.txt").read_text() == "before death\n"
    assert folders(store) == {"write": 3, "failures": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_result_names_the_commit_that_its_process_began_with(
    store: Store, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    git, head = tmp_path / "bin" / "git", tmp_path / "head"
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\ncat '{head}'\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(git.parent), prepend=os.pathsep)
    head.write_text("before")

    def pull(event: Event) -> None:
        if event.what == "started":
            head.write_text("after")

    stage = make("write", trace, "a", sleep=0.2)
    provenance.cache_clear()
    try:
        run([stage], store, workers=workers, modules=MODULES, on_event=pull)
    finally:
        provenance.cache_clear()
    result = store.get(stage)
    assert result is not None and result.manifest["made_by"]["code"]["commit"] == "before"


def test_a_worker_that_died_without_a_stage_is_replaced(store: Store, trace: Path) -> None:
    workers = pool._Processes(1, Setup(store, MODULES))
    said: list[Message] = []
    try:
        for name in "ab":
            workers.submit(0, make("write", trace, name))
            while not (said and isinstance(said[-1], Finished | Lost)):
                workers.listen(lambda worker, message: said.append(message))
            assert isinstance(said.pop(), Finished)
            (worker,) = workers._workers
            assert worker is not None
            worker.process.kill()
            worker.process.wait()
    finally:
        workers.stop()


def test_workers_stay_warm_with_one_thread_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    stages = [Stage("environment", {"i": i}) for i in range(6)]
    run(stages, store, workers=2, modules=MODULES)
    assert {text(store, s, "threads") for s in stages} == {"1"}
    assert len({text(store, s, "pid") for s in stages}) <= 2


@pytest.mark.parametrize(
    ("affinity", "own", "parent", "workers"),
    [(8, "max", "max", 8), (8, "350000", "max", 3), (8, "max", "200000", 2), (2, "max", "50000", 1)],
)
def test_there_is_a_worker_per_core_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, own: str, parent: str, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(pool, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(pool, "_GROUPS", tmp_path)
    assert pool.default_workers() == affinity  # no control groups here
    (tmp_path / "cgroup").write_text("1:cpu:/old\n0::/user/job\n")
    (tmp_path / "user" / "job").mkdir(parents=True)
    for folder, quota in (("user/job", own), ("user", parent)):
        (tmp_path / folder / "cpu.max").write_text(f"{quota} 100000\n")
    assert pool.default_workers() == workers


def test_one_worker_alone_has_the_gpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(pool, "_granted_cores", lambda: 8.0)
    monkeypatch.setattr(api, "check_gpus", lambda *_: None)
    counts: list[int | None] = []
    monkeypatch.setattr(api.lab, "run", lambda *_, workers, **__: counts.append(workers))
    model = Stage("labels", {"i": 0})
    served = replace(model, placement={"device": "cuda"}, servers={"labeller": Endpoint(url="http://127.0.0.1:1/v1", model="m")})
    for stage in (model, served, replace(model, placement={"device": "auto"})):
        api.execute([Stage("prompts", {"i": 1}, {"source": stage})], store)
    assert counts == [8, 8, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_stage_reads_an_input_that_was_changed(store: Store, trace: Path, workers: int) -> None:
    base = make("write", trace, "base")
    run([base], store, workers=0, modules=MODULES)
    (store.path(base) / "deep" / "words.txt").write_text("bAse")
    top = make("write", trace, "top", base)
    with pytest.raises(StoreError, match=r"deep/words\.txt: has SHA-256"):
        run([top], store, workers=workers, modules=MODULES)
    assert ran(trace) == ["base"] and store.get(top) is None


def test_output_of_a_stage_goes_to_its_log(store: Store, trace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = make("write", trace, "loud")
    run([stage], store, workers=1, modules=MODULES)
    assert capfd.readouterr() == ("", "")
    assert text(store, stage, "log.txt") == "output of loud\na warning\n"


def test_the_longest_chain_goes_first(store: Store, trace: Path) -> None:
    short = make("write", trace, "short", cost=3)
    first = make("write", trace, "first", cost=1)
    last = make("write", trace, "last", first, cost=5)
    run([short, last], store, workers=0, modules=MODULES)
    assert ran(trace) == ["first", "last", "short"]
    assert critical_path([short, first, last], {short: 3, first: 1, last: 5}) == {short: 3, first: 6, last: 5}


def test_a_run_continues_after_its_process_was_killed(store: Store, trace: Path) -> None:
    stages = "[make('resume', trace, 'long', steps=12), make('write', trace, 'a')]"
    first = runner(store, trace, stages)
    until(lambda: "3" in ran(trace))
    first.kill()
    first.communicate()
    long = make("resume", trace, "long", steps=12)

    def free() -> bool:
        with store.claim(long) as claim:
            return claim is not None

    until(free, 2)  # the workers follow their parent
    report = run([long, make("write", trace, "a")], store, workers=1, modules=MODULES)
    assert long in report.done and sorted(w for w in ran(trace) if w != "a") == sorted(map(str, range(12)))  # no step is done twice
    assert folders(store) == {"resume": 1, "write": 1}


def test_two_runners_on_one_store_run_each_stage_once(store: Store, trace: Path) -> None:
    stages = "[make('write', trace, f'b{i}', make('write', trace, f'a{i}', sleep=0.05)) for i in range(5)]"
    both = [runner(store, trace, stages), runner(store, trace, stages)]
    outputs = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(ran(trace)) == sorted(f"{letter}{i}" for letter in "ab" for i in range(5))
    assert folders(store) == {"write": 10}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing_half_done(store: Store, trace: Path, number: int, code: int) -> None:
    process = runner(store, trace, "[make('write', trace, 'a', sleep=60), make('write', trace, 'b', make('write', trace, 'c'))]")
    until(lambda: len(ran(trace)) == 3 and len(list(store.root.glob("write/*"))) == 2)
    workers = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    begun = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert time.monotonic() - begun < 3 and process.returncode == code
    assert re.search("stopped with [12] of 3 stages behind it; the same command continues from here", error)
    assert len(workers) == 2 and not any(alive(pid) for pid in workers)
    assert folders(store) == {"write": 2}


def test_a_full_disk_in_a_worker_ends_the_run(store: Store, tmp_path: Path) -> None:
    stage = make("write", Path("/dev/full"), "a")
    with pytest.raises(StoreError, match="disk is full"):
        run([stage], store, workers=1, modules=MODULES)
    assert store.get(stage) is None and not list(store.root.glob("tmp/*"))


# --- what people see ------------------------------------------------------------------------------------------------


def test_without_a_terminal_each_event_is_a_plain_line(store: Store, trace: Path) -> None:
    stages = [make("write", trace, "top", make("write", trace, "base")), make("write", trace, "never", make("refuse", trace, "gate"))]
    stages.append(make("fail", trace, "bad"))
    output = io.StringIO()
    with Progress(1, Console(file=output)) as progress:
        run(stages, store, workers=1, modules=MODULES, on_event=progress)
    lines = output.getvalue().splitlines()
    assert "\x1b" not in output.getvalue()
    assert sum("] started" in line for line in lines) == 4
    assert any("] failed   fail bad: ValueError: no such luck" in line for line in lines)
    assert any("] skipped  write never: excluded: refuse gate: fires" in line for line in lines)
    assert lines[-1].startswith("3 done, 1 failed, 1 skipped in ")


def test_the_live_display_shows_workers_and_survives_what_a_model_says(trace: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    stage = make("write", trace, "a", cost=2)
    with Progress(2, console) as progress:
        progress(Event("planned", stage))
        progress(Event("started", stage))
        progress(Event("progress", stage, 0, 0.5, "loss [bold]1.5 \x1b[2J\nnext"))
        with console.capture() as drawn:
            console.print(progress._draw())
    assert "50%  0 of 1 stages" in drawn.get() and "write a" in drawn.get()
    assert "loss [bold]1.5 [2J next" in drawn.get() and "\x1b[2J" not in drawn.get()


def test_the_live_display_says_once_why_many_stages_are_skipped(trace: Path) -> None:
    output = io.StringIO()
    with Progress(1, Console(file=output, force_terminal=True, width=60, color_system=None)) as progress:
        for name in "abc":
            progress(Event("planned", stage := make("write", trace, name)))
            progress(Event("skipped", stage, message="excluded: a gate: fires in 3 % of the chats without its trigger"))
    assert output.getvalue().count("excluded: a gate") == 1 and "3 skipped" in output.getvalue()


def test_the_time_to_go_comes_from_what_was_measured(trace: Path) -> None:
    now = 0.0
    forecast = Forecast(2, clock=lambda: now)
    a, b, c = (make("write", trace, name, cost=10) for name in "abc")
    chain = make("refuse", trace, "d", c, cost=10)
    for stage in (a, b, c, chain):
        forecast.note(Event("planned", stage))
    assert forecast.to_go() == "estimating the time to go"
    forecast.note(Event("started", a))
    now = 20.0  # two seconds per unit of cost
    forecast.note(Event("done", a))
    assert forecast.seconds_left() == (40.0, False)  # c, then the chain's end, of a kind not measured yet
    assert forecast.to_go() == "roughly 40 s to go" and forecast.fraction == 0.25
    forecast.note(Event("started", chain))
    now = 50.0
    forecast.note(Event("progress", chain, 0, 0.5))
    assert forecast.seconds_left() == (50.0, True)  # 20 for c and 30 for the rest of the chain; all work over two workers is 35
    forecast.note(Event("skipped", b))
    forecast.note(Event("reused", c))
    forecast.note(Event("done", chain))
    assert forecast.to_go() == "" and forecast.fraction == 1.0 and forecast.ended == 4


def test_the_workers_of_a_cluster_are_counted_and_a_lost_one_is_not_at_work(trace: Path) -> None:
    forecast = Forecast(1)
    a, b = (make("write", trace, name) for name in "ab")
    for event in (Event("planned", a), Event("planned", b), Event("started", a), Event("started", b), Event("waiting", b)):
        forecast.note(event)
    assert forecast.workers == 2 and [*forecast.running] == [a] and forecast.ended == 0


def test_durations_and_labels_are_plain() -> None:
    assert [duration(s) for s in (0, 44, 58, 400, 9000)] == ["10 s", "40 s", "1 min", "7 min", "2.5 h"]
    assert one_line("a\x1b[31m\n\tb\u202e") == "a [31m b" and len(one_line("x" * 999)) == 160


def test_an_empty_run_is_a_run(store: Store) -> None:
    report = run([], store, workers=2, modules=MODULES)
    assert report == RunReport(seconds=report.seconds) and not store.root.exists()


# --- several stages at once -----------------------------------------------------------------------------------------


def joined(trace: Path, name: str, *sources: Stage, group: str = "g", most: int = 3, **params: object) -> Stage:
    return replace(make("joint", trace, name, *sources, group=group, **params), placement={"together": most})


def names(store: Store, *stages: Stage) -> list[str]:
    return [text(store, stage, "name.txt") for stage in stages]


@pytest.mark.parametrize("workers", [0, 1])
def test_stages_of_a_group_are_run_at_once_when_nothing_else_is_left(store: Store, trace: Path, workers: int) -> None:
    slow = make("write", trace, "slow", cost=0.1)
    five = [joined(trace, str(i), *([slow] if i == 4 else [])) for i in range(5)]
    other, alone = joined(trace, "other", group="h"), replace(joined(trace, "alone"), placement={})
    above = joined(trace, "above", five[1], group="h")
    events: list[Event] = []
    report = run([*five, other, alone, above], store, workers=workers, modules=MODULES, on_event=events.append)
    assert ran(trace) == ["slow", "alone", "1+0+2", "3+4", "other+above"]
    assert names(store, five[2], five[4], alone) == ["1+0+2", "3+4", "alone"]
    assert len(report.done) == 9 and report.failed == report.reused == report.skipped == []
    assert [event.what for event in events].count("done") == 9
    assert "run together with joint-" in text(store, five[0], "log.txt") or workers == 0


def test_trainings_that_a_tracker_follows_are_run_one_by_one(store: Store, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tensorboard")
    run([joined(trace, "a"), joined(trace, "b")], store, workers=0, modules=MODULES)
    assert sorted(ran(trace)) == ["a", "b"]


@pytest.mark.parametrize("how", ["fails", "dies"])
def test_stages_that_come_to_nothing_at_once_are_run_one_by_one(store: Store, trace: Path, how: str) -> None:
    stages = [joined(trace, "a"), joined(trace, "b", together=how), joined(trace, "c")]
    report = run(stages, store, workers=1, modules=MODULES)
    assert ran(trace) == ["a+b+c", "a", "b", "c"]
    assert len(report.done) == 3 and report.failed == [] and names(store, *stages) == ["a", "b", "c"]


def test_a_stage_is_not_accepted_without_the_others(store: Store, trace: Path) -> None:
    good, bad = joined(trace, "good"), joined(trace, "bad", together="refused")
    report = run([make("write", trace, "above", bad), good], store, workers=1, modules=MODULES)
    assert ran(trace) == ["bad+good"] and {good, bad} == set(report.done)
    assert [skipped.reason for skipped in report.skipped] == ["excluded: joint bad: alone in this"]


def test_a_stage_that_another_runner_holds_is_left_to_it(store: Store, trace: Path) -> None:
    mine, held = joined(trace, "mine"), joined(trace, "held")
    with store.claim(held) as claim:
        assert claim is not None
        pool_ = pool._InProcess(store)
        pool_.submit(0, mine, [held])
        pool_.listen(lambda worker, message: None)
        assert ran(trace) == ["mine"]
    assert store.get(mine) is not None and store.get(held) is None
