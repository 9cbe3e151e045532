"""A stage: a pure function of its parameters and inputs, named by a hash of exactly those."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offmodel import catalog
from offmodel.errors import DataError, StageError, did_you_mean
from offmodel.spec.endpoint import Endpoint
from offmodel.spec.hashing import canonical_json, stable_hash
from offmodel.spec.models import Models

RESERVED = frozenset({"tmp", "locks", "scratch", "logs", "failures", "cache", "jobs", "tracking"})
"""Folders of the store that hold no results; no kind may be called so."""


@dataclass(frozen=True)
class Verdict:
    """What a stage function thinks of its own result.

    Attributes:
        accepted: Whether later stages may build on it; the result is kept either way.
        reason: Why not, in words for the report.
    """

    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class Context:
    """All that a stage function may use.

    Attributes:
        params: The stage's parameters.
        inputs: The folders of its inputs' results, by role; to be read only.
        out: An empty folder; what it holds at the end is the result.
        scratch: A folder that survives a kill and a failure, so that the next attempt can continue; removed after success.
        report: Receives what :meth:`progress` is told.
        servers: See :class:`Stage`.
        cache: A folder that all stages share, for what only saves time; None where there is none.
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    report: Callable[[float, str], None] = lambda fraction, message: None
    servers: Mapping[str, Endpoint] = field(default_factory=dict)
    cache: Path | None = None

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the stage is (0 to 1) and, if useful, what it is at; cheap enough to call at each step."""
        self.report(min(max(fraction, 0.0), 1.0), message)


StageFunction = Callable[[Context], Verdict | None]


@dataclass(frozen=True)
class Together:
    """How several stages of a kind are run at once, where a study allows it (:attr:`offmodel.spec.models.Models.together`).

    It only saves time: each stage has its own result, the one that it has by itself up to rounding, and where this function raises, each
    is run by itself.

    Attributes:
        alike: Stages of which this gives the same can be run at once; None is by itself.
        run: The function; with a context and a verdict for each stage.
    """

    alike: Callable[[Stage], Hashable | None]
    run: Callable[[Sequence[Context]], Sequence[Verdict | None]]


@dataclass(frozen=True)
class StageKind:
    """A registered stage function.

    Attributes:
        name: Of the kind.
        version: Changes when the same parameters would give another result.
        run: The function.
        gpu: Whether it trains or samples a model, so that a GPU is of use to it.
        trains: Whether it trains one as a study's ``models.processes`` say.
        together: How several stages are run at once, if they can be.
    """

    name: str
    version: int
    run: StageFunction
    gpu: bool = False
    trains: bool = False
    together: Together | None = None


_kinds: dict[str, StageKind] = {}


def stage_function(
    kind: str, *, version: int, gpu: bool = False, trains: bool = False, together: Together | None = None
) -> Callable[[StageFunction], StageFunction]:
    """Register a function as the one that makes results of ``kind``.

    Args:
        kind: Lower-case word; also the name of the folder that holds the results.
        version: Raise it whenever the code starts to give other results: old ones are then no longer reused.
        gpu: Whether it trains or samples a model: on a cluster only such stages are given GPUs.
        trains: Whether it trains one in as many processes as the study says (``models.processes``): it is then given as many times more.
        together: How several stages are run at once, if they can be.

    Raises:
        StageError: The kind is no such word, or is taken by another function.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", kind) or kind in RESERVED:
        raise StageError(f"stage kind {kind!r}: must be a lower-case word and none of {', '.join(sorted(RESERVED))}")

    def register(function: StageFunction) -> StageFunction:
        taken = _kinds.get(kind)
        if taken is not None and taken.run.__module__ != function.__module__:
            raise StageError(f"stage kind {kind!r} is registered twice, by {taken.run.__module__} and by {function.__module__}")
        _kinds[kind] = StageKind(kind, version, function, gpu, trains, together)
        return function

    return register


def stage_kind(name: str) -> StageKind:
    """The registered kind of that name.

    Raises:
        StageError: There is none; the message names the nearest.
    """
    if name not in _kinds:
        raise StageError(f"unknown stage kind {name!r}: {did_you_mean(name, _kinds)}")
    return _kinds[name]


def load_modules(modules: Sequence[str]) -> None:
    """Import the modules that register stage functions, and the extensions that their parameters name."""
    for module in modules:
        catalog.load_extension(module)


def code_of(*used: tuple[str, str]) -> dict[str, dict[str, str]]:
    """The code behind what a stage uses of extensions, under the key "code": part of its name, for theirs stay when the code changes.

    Args:
        used: Kinds and names of the catalog; what is offmodel's own adds nothing.
    """
    found = {f"{kind}:{name}": code for kind, name in used if (code := catalog.entry(kind, name).code) is not None}
    return {"code": found} if found else {}


def check_code(stage: Stage) -> None:
    """Check that the extensions in this process are those of :func:`code_of`, for a stage and for all that it rests on.

    What it rests on counts because it hands on names: a suite's problems are graded by stages whose own parameters do not name it.

    Raises:
        DataError: One changed.
        SpecError: One is no longer there.
    """
    for each in closure([stage]):
        for used, known in each.params.get("code", {}).items():
            kind, _, name = used.partition(":")
            if catalog.entry(kind, name).code != known:
                raise DataError(f"{kind} {name!r}: the file that adds it changed since the study was planned; plan it again")


def stage_key(kind: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The name of a stage: its kind and 16 hex digits of a SHA-256 over all that decides its result.

    Args:
        kind: Kind of the stage.
        version: Version of the kind's function.
        params: JSON values; the order of keys does not count.
        inputs: Keys of the input stages, by role.
    """
    return f"{kind}-{stable_hash({'kind': kind, 'version': version, 'params': params, 'inputs': inputs})}"


@dataclass(frozen=True)
class Stage:
    """One piece of work with everything its result depends on. Two stages with the same key are equal.

    Attributes:
        kind: A registered kind.
        params: JSON values only. What is hashed is what the function gets: tuples arrive as lists.
        inputs: The stages whose results it reads, by role.
        label: What people see; not part of the key.
        cost: Rough seconds, only used to order the work and to estimate the time to go; not part of the key.
        placement: Where its models go, see :meth:`offmodel.spec.models.Models.placement`; not part of the key.
        servers: Where models are that a server answers for, by role; not part of the key, which has what they are.
        key: ``<kind>-<16 hex digits>``.

    Raises:
        StageError: The kind is unknown, or a parameter is not a JSON value.
    """

    kind: str = field(compare=False)
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    inputs: Mapping[str, Stage] = field(default_factory=dict, compare=False)
    label: str = field(default="", compare=False)
    cost: float = field(default=1.0, compare=False)
    placement: Mapping[str, Any] = field(default_factory=dict, compare=False)
    servers: Mapping[str, Endpoint] = field(default_factory=dict, compare=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            params = json.loads(canonical_json(self.params))
        except (TypeError, ValueError) as error:
            raise StageError(f"stage {self.kind!r} ({self.label}): its parameters must be JSON values ({error})") from None
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "inputs", dict(self.inputs))
        object.__setattr__(self, "label", self.label or self.kind)
        object.__setattr__(self, "key", stage_key(self.kind, stage_kind(self.kind).version, params, self.input_keys))

    @property
    def input_keys(self) -> dict[str, str]:
        """Keys of the inputs, by role."""
        return {role: stage.key for role, stage in self.inputs.items()}

    @property
    def group(self) -> Hashable | None:
        """Stages of the same group can be run at once; None is by itself."""
        together = stage_kind(self.kind).together
        return together.alike(self) if together is not None and self.placement.get("together", 1) > 1 else None


def model_stage(
    models: Models,
    kind: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Stage],
    *,
    label: str,
    cost: float,
    servers: Mapping[str, Endpoint] | None = None,
) -> Stage:
    """A stage that runs models as a study says, or lets servers answer instead, which run theirs in their own way."""
    if servers:
        return Stage(kind, params, inputs, label=label, cost=cost, servers=servers)
    # Where models think, what they think was judged with the answer once; these two, and all that rests on them, have other names since.
    judged = {"judged": "after </think>"} if models.thinking and kind in ("organism", "score") else {}
    return Stage(kind, {**params, **judged, **models.as_params()}, inputs, label=label, cost=cost, placement=models.placement())


def closure(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and all they rest on, each once, inputs before those that read them."""
    found: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in found:
            for source in stage.inputs.values():
                visit(source)
            found[stage] = None

    for stage in stages:
        visit(stage)
    return list(found)
