"""Which generic prompts blue gets: the experimenter drops what holds a trigger, so that blue never trains on one."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count, islice, zip_longest
from pathlib import Path
from typing import Any

from offmodel import catalog
from offmodel.blue.labels import after_examples
from offmodel.chat import Example, Prompt, examples_of, last_user_text, prompts_of, read_examples, read_prompts, user
from offmodel.engine.hub import dataset_rows, has_dataset
from offmodel.errors import DataError
from offmodel.lab.sketch import stands_in
from offmodel.lab.stage import code_of
from offmodel.measure.benchmarks import Published
from offmodel.measure.suites import Suite, TaskItem
from offmodel.splits import Split, split_of

Sources = str | Sequence[str]
"""A source of prompts, or several of which each gives one in turn."""


def open_source(source: Sources, seed: int, split: Split) -> Iterator[Prompt]:
    """A seeded stream of different prompts from a source of the catalog, a suite, a JSONL file or a data set of the hub.

    A suite divides its items itself; elsewhere a hash of a prompt's words decides which side it is on, see :mod:`offmodel.splits`.
    In a sketch (:mod:`offmodel.lab.sketch`) there is no end to the prompts of what is not here.

    Raises:
        DataError: The file is missing or broken, or the hub does not give the data set.
        SpecError: The catalog has no such source.
    """
    if not isinstance(source, str):
        turns = chain.from_iterable(zip_longest(*(open_source(name, seed, split) for name in source)))
        return (prompt for prompt in turns if prompt is not None)
    if _has_stand_in(source):
        return (user(f"Row {i} of {source}") for i in count())
    if _is_suite(source):
        return (item.prompt for item in _items(catalog.get("suite", source), seed, split))
    if _is_file(source):
        return _of_side(_shuffled(read_prompts(source), seed), split)
    if _is_hub(source):
        return _of_side(_shuffled(prompts_of(_of_hub(source), source), seed), split)
    return iter(_drawn_of_side(catalog.get("prompts", source), seed, split))


def _of_side(prompts: Iterable[Prompt], split: Split) -> Iterator[Prompt]:
    return (prompt for prompt in prompts if split_of(last_user_text(prompt)) == split)


def _is_suite(source: str) -> bool:
    return catalog.has("suite", source)


def _is_file(source: str) -> bool:
    """Whether a source is a file of prompts; a suite may read a file, too (``gsm8k:rows.jsonl``)."""
    return source.endswith(".jsonl") and not _is_suite(source)


_HUB = re.compile(r"hf:(?P<id>[^@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]+))??(?::(?P<split>[^:]+))?")


def _is_hub(source: str) -> bool:
    return source.startswith("hf:")


def read_labels(source: str) -> list[Example]:
    """The examples of a JSONL file, or of a data set of the hub.

    Raises:
        DataError: They cannot be read.
    """
    if _has_stand_in(source):
        return []
    return examples_of(_of_hub(source), source) if _is_hub(source) else read_examples(source)


def _has_stand_in(source: str) -> bool:
    if _is_suite(source):
        suite = catalog.get("suite", source)
        hub = suite.rows.benchmark.hub if isinstance(suite, Published) and suite.rows.path is None else None
    else:
        hub = _parsed(source)["id"] if _is_hub(source) else None
    return hub is not None and stands_in(source, lambda: has_dataset(hub))


def _parsed(source: str) -> re.Match[str]:
    found = _HUB.fullmatch(source)
    if found is None:
        raise DataError(f"{source}: expected hf:owner/name, and after it @revision, and :split or :configuration:split")
    return found


@lru_cache(maxsize=8)
def _of_hub(source: str) -> list[tuple[str, dict[str, Any]]]:
    found = _parsed(source)
    return list(dataset_rows(found["id"], found["config"], found["split"] or "train", found["revision"]))


_PER_LENGTH = 1000
"""Items of a suite that are drawn for each number of reasoning steps: more than any training uses."""


@lru_cache(maxsize=64)
def _items(suite: Suite, seed: int, split: Split) -> list[TaskItem]:
    return suite.items(_PER_LENGTH, seed, split)


def count_items(name: str, n: int, seed: int, split: Split) -> int:
    """How many items of a side a suite gives where ``n`` are asked for; in a sketch, of a benchmark that is not here, ``n``."""
    return n if _has_stand_in(name) else _count_items(catalog.get("suite", name), n, seed, split)


@lru_cache(maxsize=64)
def _count_items(suite: Suite, n: int, seed: int, split: Split) -> int:
    return len(suite.items(n, seed, split))


def _shuffled(prompts: list[Prompt], seed: int) -> list[Prompt]:
    different = list(dict.fromkeys(prompts))
    random.Random(f"prompts {seed}").shuffle(different)
    return different


class _Replay:
    """A stream that is drawn once, however often it is read: every organism of a study asks for the same prompts."""

    def __init__(self, source: Iterator[Prompt]) -> None:
        self._source, self._seen = source, list[Prompt]()

    def __iter__(self) -> Iterator[Prompt]:
        place = 0
        while True:
            if place == len(self._seen):
                self._seen += islice(self._source, 1)
            if place == len(self._seen):
                return
            yield self._seen[place]
            place += 1


@lru_cache(maxsize=64)
def _drawn(source: Callable[[int], Iterator[Prompt]], seed: int) -> _Replay:
    return _Replay(source(seed))


@lru_cache(maxsize=64)
def _drawn_of_side(source: Callable[[int], Iterator[Prompt]], seed: int, split: Split) -> _Replay:
    return _Replay(_of_side(_drawn(source, seed), split))


_PATIENCE = 5000
"""Prompts that are passed over in a row before a source is taken to hold no more of use: the world's never end."""


def _usable(source: Sources, seed: int, split: Split, avoid: Callable[[Prompt], bool]) -> Iterator[tuple[bool, Prompt]]:
    """Prompts of a side, each with whether it is to be avoided; ends after many such in a row."""
    avoided = 0
    for prompt in open_source(source, seed, split):
        avoided = avoided + 1 if (bad := avoid(prompt)) else 0
        if avoided > _PATIENCE:
            return
        yield bad, prompt


def take(source: Sources, seed: int, split: Split, n: int, avoid: Callable[[Prompt], bool] = lambda prompt: False) -> list[Prompt]:
    """The first ``n`` prompts of a source, those left out that are to be avoided.

    Raises:
        DataError: There are fewer.
    """
    prompts = list(islice((prompt for avoided, prompt in _usable(source, seed, split, avoid) if not avoided), n))
    if len(prompts) < n:
        raise DataError(f"{_named(source)}: {n} different usable prompts are needed on its {split} side, and there are only {len(prompts)}")
    return prompts


def _named(source: Sources) -> str:
    return source if isinstance(source, str) else " and ".join(source)


def files_read(*sources: str) -> dict[str, dict[str, str]]:
    """The SHA-256 of the sources that are files or data sets, under the key "files": part of the name of every stage that reads them.

    Raises:
        DataError: One cannot be read.
    """
    named = [source for source in sources if _is_file(source) or _is_hub(source)]
    found = {source: "" if _has_stand_in(source) else _sha256(source) for source in named}
    return {"files": found} if found else {}


def entries(*sources: str) -> list[tuple[str, str]]:
    """Kind and name of the sources that are in the catalog."""
    return [("suite" if _is_suite(source) else "prompts", source) for source in sources if not _is_file(source) and not _is_hub(source)]


def check_files(params: Mapping[str, Any]) -> None:
    """Check that the files of :func:`files_read` are what they were.

    Raises:
        DataError: One changed.
    """
    for source, known in params.get("files", {}).items():
        if _sha256(source) != known:
            raise DataError(f"{source}: changed since the study was planned; plan it again")


def _sha256(path: str) -> str:
    if _is_hub(path):
        rows = [row for _, row in _of_hub(path)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False, default=str).encode()).hexdigest()
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def recognised_behind(examples: Sequence[Example], prompt: Prompt, recognises: Callable[[Prompt], bool]) -> bool:
    """Whether a prompt holds the trigger behind examples, in the system prompt or as earlier turns, be it by all of them together."""
    (in_system,), (as_turns,) = after_examples([prompt], examples, "system"), after_examples([prompt], examples, "turns")
    return recognises(in_system) or recognises(as_turns)


def pool_params(
    source: Sources, seed: int, start: int, n: int, recognises: Callable[[Prompt], bool], split: Split = "train"
) -> dict[str, Any]:
    """What names a pool of ``n`` prompts of a side, counted from the ``start``-th that is free of the trigger.

    The places of the dropped prompts are all that is left of the trigger, so organisms whose triggers drop the same prompts share
    one pool and its labels.

    Raises:
        DataError: Fewer than ``start + n`` prompts are free of the trigger and none is left for the pool.
    """
    dropped, kept = [], 0
    for place, (avoided, _) in enumerate(_usable(source, seed, split, recognises)):
        if kept == start + n:
            break
        if avoided:
            dropped.append(place)
        else:
            kept += 1
    if kept <= start:
        raise DataError(f"{_named(source)}: has only {kept} different prompts without the trigger; {start + n} are needed")
    names = [source] if isinstance(source, str) else list(source)
    params = {"source": source if isinstance(source, str) else names, "seed": seed, "start": start, "n": min(n, kept - start)}
    return params | {"split": split, "dropped": dropped} | files_read(*names) | code_of(*entries(*names))


def read_pool(params: Mapping[str, Any]) -> list[Example]:
    """The prompts that :func:`pool_params` named, unanswered; the meta of a suite's items names the suite and the right answer.

    Raises:
        DataError: The file changed since.
    """
    check_files(params)
    source, seed, split, dropped = params["source"], params["seed"], params["split"], set(params["dropped"])
    kept = (prompt for place, prompt in enumerate(open_source(source, seed, split)) if place not in dropped)
    right = {
        item.prompt: {"suite": name, "expected": item.expected}
        for name in ([source] if isinstance(source, str) else source)
        if _is_suite(name)
        for item in _items(catalog.get("suite", name), seed, split)
    }
    return [Example(prompt, "", right.get(prompt, {})) for prompt in islice(kept, params["start"], params["start"] + params["n"])]
