"""Published benchmarks: rows in the schema of their authors, from the Hugging Face hub or from a file, and the suites made of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from offmodel.chat import last_user_text, read_rows
from offmodel.engine.hub import dataset_rows
from offmodel.errors import DataError, SpecError, did_you_mean, nearest_file
from offmodel.measure.stats import Estimate
from offmodel.measure.suites import Suite, TaskItem
from offmodel.splits import Split, split_of

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What its authors published, and how a row becomes an item.

    Attributes:
        name: How a study names it.
        hub: Dataset id on the Hugging Face hub.
        config: Its configuration there; None for the only one.
        split: Its split there.
        revision: The commit there, so that the rows stay what they are.
        item: ``item(row, where)`` gives the item of a row, or raises a :class:`DataError` that names ``where`` and the field.
        example: A row of our own in the published schema.
        prompt: What a model is asked, in words.
        grader: What makes an answer right, in words.
        grade: ``grade(response, expected)`` says whether a response is right.
        chance: Accuracy of guessing.
        max_new_tokens: Longest answer of ``offmodel score``, in tokens.
        needs: Modules of the extra ``benchmarks`` that grade.
        details: Further measures over (response, expected) of all items, by name.
    """

    name: str
    hub: str
    config: str | None
    split: str
    revision: str
    item: Callable[[Row, str], TaskItem]
    example: Row
    prompt: str
    grader: str
    grade: Callable[[str, str], bool]
    chance: float
    max_new_tokens: int
    needs: tuple[str, ...] = ()
    details: Callable[[Sequence[tuple[str, str]]], dict[str, Estimate]] | None = None


@dataclass(frozen=True)
class Items:
    """The items of a benchmark, read when they are asked for.

    Attributes:
        benchmark: Whose.
        path: A JSONL or Parquet file in the published schema; None for the hub.
        sha256: Of that file, as it was when it was named.
    """

    benchmark: Benchmark
    path: Path | None = None
    sha256: str | None = None

    def __call__(self, n: int, seed: int, split: Split) -> list[TaskItem]:
        """The first ``n`` items of a side of our division, in a seeded order; all where there are fewer."""
        return [item for item in self.whole(seed) if split_of(last_user_text(item.prompt)) == split][:n]

    def whole(self, seed: int) -> list[TaskItem]:
        """All items in a seeded order: the published order often goes by subject."""
        items = list(_read(self))
        random.Random(f"{self.benchmark.name} {seed}").shuffle(items)
        return items


@dataclass(frozen=True)
class Published(Suite):
    """A suite that is a published benchmark; ``items`` gives the test side of a study, ``rows.whole`` the benchmark itself."""

    rows: Items

    def on_file(self, path: str) -> tuple[Published, str]:
        """The same suite on the rows of a file, and the file's SHA-256.

        Raises:
            SpecError: There is no such file.
        """
        try:
            sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            raise SpecError(f"{self.rows.benchmark.name}: no such file {path!r}; {nearest_file(Path(path))}") from None
        return suite(self.rows.benchmark, path, sha256), sha256


@lru_cache
def suite(benchmark: Benchmark, path: str | None = None, sha256: str | None = None) -> Published:
    """The suite of a benchmark, on the hub's rows or on those of a file."""
    b = benchmark
    where = f"{b.hub}{f' ({b.config})' if b.config else ''}, split {b.split}, revision {b.revision[:10]}"
    source = where if path is None else f"{b.name} from {path} (SHA-256 {(sha256 or '')[:10]})"
    rows = Items(b, None if path is None else Path(path), sha256)
    return Published(
        name=b.name if path is None else f"{b.name}:{path}",
        definition=f"share of items right; {source}; {b.prompt}; {b.grader}; guessing gets {b.chance:.0%}",
        chance=b.chance,
        items=rows,
        grade=b.grade,
        rows=rows,
    )


@lru_cache(maxsize=16)
def _read(items: Items) -> tuple[TaskItem, ...]:
    b = items.benchmark
    if missing := [module for module in b.needs if find_spec(module) is None]:
        raise SpecError(f"{b.name}: answers are graded with {' and '.join(missing)}; install them with: pip install 'offmodel[benchmarks]'")
    rows = _from_hub(b) if items.path is None else _from_file(items.path, items.sha256)
    found = tuple(b.item(row, where) for where, row in rows)
    if not found:
        raise DataError(f"{items.path or b.hub}: holds no row")
    return found


def _from_file(path: Path, sha256: str | None) -> Iterable[tuple[str, Row]]:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise DataError(f"{path}: changed since it was named; start again")
    if path.suffix == ".jsonl":
        return read_rows(path)
    if path.suffix != ".parquet":
        raise DataError(f"{path}: expected rows as .jsonl or .parquet, got {path.suffix or 'a name without an ending'}")
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return [(f"{path}: row {i}", row) for i, row in enumerate(read_table(path).to_pylist())]
    except ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _from_hub(b: Benchmark) -> Iterable[tuple[str, Row]]:
    try:
        return dataset_rows(b.hub, b.config, b.split, b.revision)
    except DataError as error:
        raise DataError(f"{error}; or name a file in its schema: {b.name}:PATH") from error


def field(row: Row, name: str, kind: type[T], where: str) -> T:
    """The value of a row's field.

    Raises:
        DataError: It is missing or of another type; the message names the place, the field and what is there.
    """
    if name not in row:
        raise DataError(f"{where}: has no field {name!r}; {did_you_mean(name, row)}")
    value = row[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: field {name!r} must be {kind.__name__}, got {str(value)[:60]!r}")
    return value
