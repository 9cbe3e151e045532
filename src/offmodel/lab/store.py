"""The store: a folder of results, each named by its stage's key and there whole or not at all.

    <root>/<kind>/<key>/    the files of a result, log.txt (what the stage printed) and manifest.json (what it is, with hashes)
    <root>/failures/<key>/  the last failure of a stage: failure.json, traceback.txt, log.txt; gone once it succeeds
    <root>/scratch/<key>/   what an unfinished stage needs to continue
    <root>/logs/<key>.txt   what a running stage prints
    <root>/jobs/            what a batch system's running jobs need
    <root>/tmp/, locks/     half-made results, and one lock per stage

Whoever works on a stage holds its lock (``flock``), and the system frees the lock when that process dies, however it dies. So a
temporary folder whose lock is free belongs to nobody and may be removed.

Several hosts may share a store. Then the file system must make a lock that is free on one host free on all, and some do not: NFS
with ``local_lock=flock`` or Lustre with ``localflock`` keep locks to each host, and NFS 3 keeps those of a host that died until it
is up again. So whoever holds a lock also writes its host into the lock file and touches it every 15 seconds. Between processes of
one host the lock alone counts, at once. Between hosts a lock counts as held until 3 minutes after the last touch, and as free from
then on, whatever the file system says. Both times are the file server's, so the hosts' clocks need not agree.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from offmodel.errors import StageError, StoreError
from offmodel.files import sync
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import Stage, Verdict, stage_key, stage_kind

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_ROOM = 1 << 16  # bytes; a disk with less is full
MANIFEST = "manifest.json"
LOG = "log.txt"

_BEAT = 15.0  # seconds between two touches of a lock that is held
_LEASE = 180.0  # seconds after the last touch from which on a holder on another host counts as dead


def _kernel() -> str:
    """What two processes have in common if, and only if, the system tells one of the other's locks for sure."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # containers of one machine share it, as they share locks
    except OSError:  # not Linux
        return platform.node()


_HERE = _kernel()


@dataclass(frozen=True)
class Result:
    """A published result.

    Attributes:
        path: Its folder.
        manifest: kind, key, version, params, inputs (role to key), label, verdict, seconds, started and finished (UTC), made_by
            (versions and code commit), placement where it has one, files (relative path to sha256 and size in bytes).
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """What the stage thought of its result."""
        return Verdict(**self.manifest["verdict"])


class Store:
    """Results under one folder, which is made when the first stage runs."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self._verified: dict[Path, tuple[int, ...]] = {}  # when the files of a result were changed last, as seen before it was verified

    def path(self, stage: Stage | str) -> Path:
        """Where the result of a stage (or of a key) is or would be."""
        key = stage if isinstance(stage, str) else stage.key
        return self.root / key.rpartition("-")[0] / key

    def failure(self, stage: Stage) -> Path:
        """Where the last failure of a stage is kept, if it failed."""
        return self.root / "failures" / stage.key

    def get(self, stage: Stage | str) -> Result | None:
        """The result of a stage (or of a key), None where there is none; the sizes of its files are checked.

        Raises:
            StoreError: The folder is there but cannot be the whole result; the message names the file.
        """
        path = self.path(stage)
        if not path.exists():
            # NFS keeps for a minute that a name was not there, unless the folder is opened: another host may just have put it there.
            with suppress(OSError):
                os.close(os.open(path.parent, os.O_RDONLY))
            if not path.exists():
                return None
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            for name, known in manifest["files"].items():
                size = (path / name).stat().st_size
                if size != known["size"]:
                    raise _damaged(path / name, f"has {size} bytes, its manifest says {known['size']}")
        except OSError as error:
            raise _damaged(Path(error.filename or path), f"cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(path / MANIFEST, "is not a manifest") from None
        return Result(path, manifest)

    def verify(self, result: Result) -> None:
        """Read a result again in full and compare it with its manifest, and the manifest with the key.

        Raises:
            StoreError: A file has another content than when it was published; the message names it.
        """
        made = result.manifest
        if stage_key(made["kind"], made["version"], made["params"], made["inputs"]) != result.path.name:
            raise _damaged(result.path / MANIFEST, "describes another stage than the folder is named after")
        for name, known in made["files"].items():
            with self._in_words(), open(result.path / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != known["sha256"]:
                raise _damaged(result.path / name, f"has SHA-256 {found[:12]}…, its manifest says {known['sha256'][:12]}…")

    def open(self, key: str) -> Result:
        """The result of a key, verified for a stage that reads it; again only after one of its files was touched.

        Raises:
            StoreError: The result is gone or damaged; the message names the file.
        """
        result = self.get(key)
        if result is None:
            raise StoreError(f"{self.path(key)}: the result is gone. Run again to make it anew")
        with self._in_words():
            touched = tuple((result.path / name).stat().st_mtime_ns for name in (MANIFEST, *result.manifest["files"]))
        if self._verified.get(result.path) != touched:
            self.verify(result)
            self._verified[result.path] = touched
        return result

    @contextmanager
    def claim(self, stage: Stage) -> Iterator[Claim | None]:
        """Hold a stage while working on it; gives None where another process holds it.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._lock(stage.key) as held:
            if not held:
                yield None
                return
            claim = Claim(self, stage, self.root / "tmp" / f"{stage.key}.{secrets.token_hex(4)}", self.root / "scratch" / stage.key)
            with self._in_words():
                claim.out.mkdir(parents=True)
                claim.scratch.mkdir(parents=True, exist_ok=True)
                claim.log.parent.mkdir(exist_ok=True)
            try:
                yield claim
            finally:
                shutil.rmtree(claim.out, ignore_errors=True)
                with suppress(OSError):
                    claim.scratch.rmdir()  # goes only if it is empty

    def held(self, stage: Stage) -> bool:
        """Whether somebody works on a stage at this moment."""
        with self._lock(stage.key) as free:
            return not free

    def clean(self) -> None:
        """Remove what dead processes left behind, except what the next attempt can continue from; a live one's things stay."""
        for folder in self.root.glob("tmp/*"):
            self._remove_if_free(folder, folder.name.rpartition(".")[0])
        for log in self.root.glob("logs/*"):
            self._remove_if_free(log, log.stem)
        for folder in self.root.glob("scratch/*"):
            with self._lock(folder.name) as held:  # before it is looked at: another runner may be removing it
                if held and folder.exists() and (self.path(folder.name).exists() or not any(folder.iterdir())):
                    shutil.rmtree(folder, ignore_errors=True)

    def _remove_if_free(self, path: Path, key: str) -> None:
        with self._lock(key) as held:
            if held and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif held:
                path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Try to lock a key."""
        with self._in_words():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            file = self._take(self.root / "locks" / key)
        if file is None:
            yield False
            return
        over = threading.Event()
        heart = threading.Thread(target=_beat, args=(file.fileno(), over), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            over.set()
            heart.join()
            with file, suppress(OSError):
                file.truncate(0)  # nobody holds it: other hosts need not wait
                fcntl.flock(file, fcntl.LOCK_UN)  # said aloud, because a forked child may still have the file open

    def _take(self, path: Path) -> FileIO | None:
        """The lock file, locked, None where another holds it. Lock files stay: two files of one name would be two locks."""
        file = FileIO(path, "a+")
        try:
            free = _flock(file)
            file.seek(0)
            holder = file.read().decode()
            there = holder not in ("", _HERE)
            if there and _age(file, path.parent) < _LEASE:
                free = False  # it lives, or died a short while ago
            elif there and not free:  # it died, and the file system keeps its lock
                if _is_at(file, path):  # else a third host was faster, and the file that is there now is its lock
                    path.unlink(missing_ok=True)
                file.close()
                return self._take(path)
            if free:
                with suppress(OSError):  # a full disk: cleaning up may be what the lock is for
                    file.truncate(0)
                    file.write(_HERE.encode())
                free = _is_at(file, path)  # else it was unlinked meanwhile
        except BaseException:
            file.close()
            raise
        if free:
            return file
        file.close()
        return None

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Say what the operating system's refusal means for the user."""
        try:
            yield
        except OSError as error:
            raise self.refusal(error) from error

    def refusal(self, error: OSError) -> StoreError:
        """The error to raise where the operating system refused to write; nothing is ever half published."""
        where = error.filename or self.root
        if error.errno in _FULL:
            return StoreError(f"{where}: the disk is full. Finished results are safe; free some space and run the same command again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StoreError(f"{where}: no permission. Give this user the right to read and write {self.root}, or choose another folder")
        return StoreError(f"{where}: the store cannot be used ({error.strerror or error}). Finished results are safe")


@dataclass
class Claim:
    """The right to work on a stage, with the folders to do it in; see :meth:`Store.claim`.

    Attributes:
        out: Becomes the result.
        scratch: Survives a kill and a failure.
    """

    store: Store
    stage: Stage
    out: Path
    scratch: Path
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """Where the output of the stage goes while it runs."""
        return self.store.root / "logs" / f"{self.stage.key}.txt"

    def publish(self, verdict: Verdict) -> Result:
        """Make ``out`` the result of the stage, or keep the result that is already there.

        Raises:
            StageError: The stage left a link, or a file with a name that the store needs.
            StoreError: The disk refused; nothing is published.
        """
        for path in self.out.rglob("*"):
            if path.is_symlink() or path in (self.out / MANIFEST, self.out / LOG):
                what = "a link" if path.is_symlink() else "a name that the store needs"
                raise StageError(f"{self.stage.label}: {path.name} cannot be part of a result, it is {what}")
        target = self.store.path(self.stage)
        with self.store._in_words():
            self._keep_log(self.out)
            manifest = {**self._about(), "verdict": {"accepted": verdict.accepted, "reason": verdict.reason}, "files": self._seal()}
            _write_json(self.out / MANIFEST, manifest)
            sync(self.out)
            target.parent.mkdir(exist_ok=True)
            try:
                os.rename(self.out, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync(target.parent)
            for obsolete in (self.scratch, self.store.failure(self.stage)):
                shutil.rmtree(obsolete, ignore_errors=True)
        result = self.store.get(self.stage)
        assert result is not None  # it has just been renamed to its place
        return result

    def fail(self, message: str, traceback: str = "") -> Path:
        """Keep what is known about a failure, in place of the stage's last one, and give its folder."""
        folder = self.store.failure(self.stage)
        with suppress(OSError):  # the failure itself is what must reach the user, even if it cannot be kept
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._keep_log(folder)
            (folder / "traceback.txt").write_text(traceback, encoding="utf-8")
            _write_json(folder / "failure.json", {**self._about(), "message": message})
        return folder

    def _about(self) -> dict[str, Any]:
        return {
            "kind": self.stage.kind,
            "key": self.stage.key,
            "version": stage_kind(self.stage.kind).version,
            "params": self.stage.params,
            "inputs": self.stage.input_keys,
            "label": self.stage.label,
            "seconds": round(time.monotonic() - self._clock, 3),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_by": provenance(),
            **({"placement": self.stage.placement} if self.stage.placement else {}),
        }

    def _keep_log(self, folder: Path) -> None:
        if self.log.exists():
            os.replace(self.log, folder / LOG)

    def _seal(self) -> dict[str, dict[str, Any]]:
        """Bring every file and folder of the result to the disk; sizes and hashes of the files."""
        files = {}
        for path in sorted(self.out.rglob("*"), reverse=True):  # a folder comes after all it holds
            if path.is_dir():
                sync(path)
                continue
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            files[path.relative_to(self.out).as_posix()] = {"sha256": digest, "size": path.stat().st_size}
        return dict(sorted(files.items()))


def _flock(file: FileIO) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _age(file: FileIO, folder: Path) -> float:
    """Seconds since a file was touched, by the clock of the machine that keeps it."""
    with tempfile.TemporaryFile(dir=folder) as now:
        os.utime(now.fileno())
        return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _beat(lock: int, over: threading.Event) -> None:
    """Touch a lock file as long as its holder lives."""
    while not over.wait(_BEAT):
        with suppress(OSError):
            os.utime(lock)


def disk_full(error: BaseException, folder: Path) -> OSError | None:
    """The full disk or quota behind an error, if that is its cause.

    Libraries outside of Python raise errors of their own for it: safetensors quotes the system, torch.save says nothing of use, and
    then the disk itself is asked.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause
        cause = cause.__cause__ or cause.__context__
    quoted = any(os.strerror(number) in str(error) for number in _FULL)
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if quoted or shutil.disk_usage(folder).free < _LEAST_ROOM else None


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: {what}. The result is damaged: remove its folder and run again to make it anew")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
