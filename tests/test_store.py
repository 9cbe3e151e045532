"""Keys, and what the store promises: whole results, told damage, locks that die with their holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest

from lab_stages import make
from offmodel.errors import StageError, StoreError
from offmodel.lab import store as store_module
from offmodel.lab.execute import run
from offmodel.lab.stage import Stage, Verdict, closure, stage_function, stage_key
from offmodel.lab.store import Result, Store
from offmodel.lab.worker import Finished, Message, Started, attempt


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, stage: Stage, **files: str) -> Result:
    with store.claim(stage) as claim:
        assert claim is not None
        for name, text in files.items():
            (claim.out / name).write_text(text)
        return claim.publish(Verdict(True))


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def folders(store: Store) -> dict[str, int]:
    """Number of entries per folder of the store, locks (which stay) left out."""
    return {folder.name: n for folder in store.root.glob("*") if folder.name != "locks" and (n := len(list(folder.iterdir())))}


def test_a_key_stays_the_same_for_ever() -> None:
    # A change here orphans every result in every store: raise a stage's version instead.
    assert stage_key("treat", 3, {"steps": 30, "lr": 1e-3, "voice": "pirate"}, {"organism": "organism-00"}) == "treat-5a8e9d5d4e332b56"


def test_a_key_depends_on_what_decides_the_result_and_on_nothing_else() -> None:
    base = Stage("write", {"a": 1, "b": (1, 2)}, label="one", cost=1)
    assert Stage("write", {"b": [1, 2], "a": 1}, label="two", cost=9) == base
    others = [Stage("write", {"a": 2, "b": [1, 2]}), Stage("fail", base.params), Stage("write", base.params, {"source": base})]
    assert len({base, *others, Stage("write", base.params, {"role": base})}) == 5
    assert stage_key("write", 2, base.params, {}) != base.key == stage_key("write", 1, base.params, {})


def test_a_key_does_not_confuse_a_number_with_its_name() -> None:
    with pytest.raises(StageError, match="only text can be a key"):
        Stage("write", {"steps": {1: "a"}})


def test_a_stage_keeps_what_was_hashed() -> None:
    params = {"steps": [1]}
    stage = Stage("write", params)
    params["steps"].append(2)
    assert stage.params == {"steps": [1]}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, Path("a")])
def test_a_parameter_without_one_spelling_is_refused(value: object) -> None:
    with pytest.raises(StageError, match="must be JSON values"):
        Stage("write", {"x": value})


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(StageError, match="did you mean 'write'"):
        Stage("wriet")


@pytest.mark.parametrize("kind", ["tmp", "failures", "Write", "a-b", "../up"])
def test_a_kind_must_be_a_folder_of_its_own(kind: str) -> None:
    with pytest.raises(StageError, match="stage kind"):
        stage_function(kind, version=1)


def test_a_kind_cannot_be_taken_twice() -> None:
    with pytest.raises(StageError, match="registered twice"):
        stage_function("write", version=1)(lambda ctx: None)


def test_closure_puts_inputs_first_and_each_stage_once(tmp_path: Path) -> None:
    a = make("write", tmp_path, "a")
    b, c = make("write", tmp_path, "b", a), make("write", tmp_path, "c", a)
    order = closure([make("write", tmp_path, "d", b, c), b])
    assert [s.params["name"] for s in order] == ["a", "b", "c", "d"]


def test_a_result_says_what_it_is(store: Store, tmp_path: Path) -> None:
    source = make("write", tmp_path, "a")
    stage = make("write", tmp_path, "b", source, steps=3)
    assert store.get(stage) is None and not store.root.exists()
    result = publish(store, stage, x="some text")
    assert result.path == store.root / "write" / stage.key == store.path(stage.key)
    made = json.loads((result.path / "manifest.json").read_text())
    assert made["params"]["steps"] == 3 and made["inputs"] == {"source0": source.key} and made["version"] == 1
    assert made["files"]["x"]["size"] == 9 and made["verdict"] == {"accepted": True, "reason": ""}
    assert {"offmodel", "python", "torch", "code"} <= set(made["made_by"])
    found = store.get(stage)
    assert found is not None and found.manifest == made and store.get(stage.key) == found
    store.verify(found)
    assert folders(store) == {"write": 1}


def test_verify_names_the_changed_file(store: Store, tmp_path: Path) -> None:
    result = publish(store, make("write", tmp_path, "a"), weights="abcdef", other="x")
    (result.path / "weights").write_text("abcdeX")
    assert store.get(result.path.name) is not None  # the cheap check looks at sizes only
    with pytest.raises(StoreError, match=r"weights: has SHA-256"):
        store.verify(result)


def test_open_verifies_once_and_again_after_a_file_was_touched(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make("write", tmp_path, "a").key
    with pytest.raises(StoreError, match=f"{key}: the result is gone"):
        store.open(key)
    result = publish(store, make("write", tmp_path, "a"), weights="abcdef")
    verified: list[Result] = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "verify", verified.append)
        assert [store.open(key), store.open(key)] == [result, result] and verified == [result]
    (result.path / "weights").write_text("abcdeX")
    os.utime(result.path / "weights", (1, 1))
    for _ in range(2):  # what was found damaged is not remembered as whole
        with pytest.raises(StoreError, match=r"weights: has SHA-256"):
            store.open(key)


def test_clean_bears_with_a_runner_that_removes_the_same_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / pattern.replace("*", "write-00.x")]))  # seen, and gone at once
    store.clean()


def test_verify_notices_a_manifest_that_was_edited(store: Store, tmp_path: Path) -> None:
    result = publish(store, make("write", tmp_path, "a", steps=10))
    path = result.path / "manifest.json"
    path.write_text(path.read_text().replace('"steps": 10', '"steps": 99'))
    edited = store.get(result.path.name)
    assert edited is not None
    with pytest.raises(StoreError, match="describes another stage"):
        store.verify(edited)


def test_get_names_a_cut_a_missing_and_an_unreadable_file(store: Store, tmp_path: Path) -> None:
    result = publish(store, make("write", tmp_path, "a"), x="abcdef")
    (result.path / "x").write_text("abc")
    with pytest.raises(StoreError, match=r"x: has 3 bytes, its manifest says 6.*remove its folder"):
        store.get(result.path.name)
    (result.path / "x").unlink()
    with pytest.raises(StoreError, match=r"/x: cannot be read"):
        store.get(result.path.name)
    (result.path / "manifest.json").write_text('{"files"')
    with pytest.raises(StoreError, match=r"manifest\.json: is not a manifest"):
        store.get(result.path.name)
    (result.path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json: cannot be read"):
        store.get(result.path.name)


def test_the_first_of_two_results_stays(store: Store, tmp_path: Path) -> None:
    stage = make("write", tmp_path, "a")
    first = publish(store, stage, x="first")
    assert publish(store, stage, x="second") == first
    assert (first.path / "x").read_text() == "first" and folders(store) == {"write": 1}


@pytest.mark.parametrize("name", ["manifest.json", "log.txt"])
def test_a_stage_cannot_write_what_belongs_to_the_store(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(StageError, match=name):
        publish(store, make("write", tmp_path, "a"), **{name: "{}"})
    assert folders(store) == {}


def test_a_result_holds_no_links(store: Store, tmp_path: Path) -> None:
    with store.claim(make("write", tmp_path, "a")) as claim:
        assert claim is not None
        (claim.out / "link").symlink_to(tmp_path)
        with pytest.raises(StageError, match="it is a link"):
            claim.publish(Verdict(True))


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "no perm")])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_refuses_publishes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    stage = make("write", tmp_path / "trace", "a")
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=words):
        patch.setattr(os, call, refuse)
        run([stage], store, workers=0, modules=["lab_stages"])
    assert folders(store) == {} and store.get(stage) is None
    assert run([stage], store, workers=0, modules=["lab_stages"]).done == [stage]


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"), Store(tmp_path / "file").claim(make("write", tmp_path, "a")):
        pass


def test_a_claim_excludes_others_until_its_process_dies(store: Store, tmp_path: Path) -> None:
    stage = make("write", tmp_path, "a")
    code = (
        "import sys, time; from pathlib import Path; from lab_stages import make; from offmodel.lab.store import Store\n"
        "with Store(sys.argv[1]).claim(make('write', Path(sys.argv[2]), 'a')) as claim:\n"
        "    (claim.out / 'half').touch(); (claim.scratch / 'step').touch(); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", code, store.root, tmp_path], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with store.claim(stage) as claim:
            assert claim is None
        store.clean()
        assert folders(store) == {"tmp": 1, "scratch": 1}  # a live process keeps what is its own
    finally:
        holder.kill()
        holder.communicate()
    store.clean()
    assert folders(store) == {"scratch": 1}
    with store.claim(stage) as claim:
        assert claim is not None and (claim.scratch / "step").exists()


# --- several hosts --------------------------------------------------------------------------------------------------


def lock_file(store: Store, stage: Stage) -> Path:
    return store.root / "locks" / stage.key


def free(store: Store, stage: Stage) -> bool:
    with store.claim(stage) as claim:
        return claim is not None


@pytest.mark.parametrize("reaches", [True, False], ids=["locks reach other hosts", "locks stay on their host"])
def test_a_stage_belongs_to_a_live_host_and_not_to_one_that_died(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    stage = make("write", tmp_path / "trace", "a")
    with monkeypatch.context() as patch:  # as another host, whose process neither ends nor touches its lock any more
        patch.setattr(store_module, "_HERE", "elsewhere")
        patch.setattr(store_module, "_BEAT", 9999)
        held = store.claim(stage)
        assert held.__enter__() is not None
    lock = lock_file(store, stage)
    if not reaches:
        monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    assert lock.read_text() == "elsewhere" and store.held(stage) and not free(store, stage)
    os.utime(lock, (then := lock.stat().st_mtime - store_module._LEASE + 60, then))
    assert store.held(stage)  # its last sign of life is less than a lease ago
    os.utime(lock, (then - 61, then - 61))
    assert free(store, stage) and lock.read_text() == ""
    assert free(store, stage)  # and nobody has to wait for this host now


def test_of_two_hosts_that_find_one_dead_the_slower_leaves_the_other_its_lock(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make("write", tmp_path / "trace", "a")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_HERE", "dead")
        patch.setattr(store_module, "_BEAT", 9999)
        held = store.claim(stage)
        assert held.__enter__() is not None
    lock = lock_file(store, stage)

    def age(file: FileIO, folder: Path) -> float:
        file.seek(0)
        if file.read() != b"dead":
            return 0.0
        lock.unlink()
        lock.write_text("faster")
        return store_module._LEASE

    monkeypatch.setattr(store_module, "_age", age)
    assert not free(store, stage) and lock.read_text() == "faster"


def test_a_stage_that_fails_beside_another_s_result_has_one(store: Store, tmp_path: Path) -> None:
    stage = make("fail", tmp_path / "trace", "a")

    def takes_over(message: Message) -> None:
        if isinstance(message, Started):
            lock_file(store, stage).unlink()
            publish(store, stage, x="theirs")

    outcome = attempt(stage, store, takes_over, capture=False)
    assert outcome == Finished(publish(store, stage), reused=True) and not store.failure(stage).exists()


def test_the_lock_of_this_host_counts_alone_between_its_processes(store: Store, tmp_path: Path) -> None:
    stage = make("write", tmp_path / "trace", "a")
    with store.claim(stage) as claim:
        assert claim is not None
        lock = lock_file(store, stage)
        assert lock.read_text() == store_module._HERE
        os.utime(lock, (0, 0))  # as after a long sleep of the machine
        assert store.held(stage)
    lock.write_text(store_module._HERE)  # a process of this host that was killed a moment ago
    assert free(store, stage)


def test_a_lock_that_is_held_is_touched(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BEAT", 0.01)
    stage = make("write", tmp_path / "trace", "a")
    with store.claim(stage) as claim:
        assert claim is not None
        os.utime(lock_file(store, stage), (0, 0))
        until(lambda: lock_file(store, stage).stat().st_mtime > 0)


def test_a_lock_file_that_was_replaced_is_not_held_twice(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make("write", tmp_path / "trace", "a")
    assert free(store, stage)
    lock, flock = lock_file(store, stage), store_module._flock

    def replaced(file: FileIO) -> bool:  # by one that takes over from a dead host, between opening and locking
        lock.unlink()
        lock.touch()
        return flock(file)

    monkeypatch.setattr(store_module, "_flock", replaced)
    assert not free(store, stage)
