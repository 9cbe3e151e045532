"""What a script needs: run a study, write its report. The command line calls the same functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from offmodel.engine.tracking import check as check_tracker
from offmodel.errors import GameError, SpecError
from offmodel.lab import execute as lab
from offmodel.lab.cells import Cell, Cells
from offmodel.lab.cluster import check_gpus, place
from offmodel.lab.plan import MODULES, Plan, make_plan
from offmodel.lab.pool import Place, default_workers
from offmodel.lab.progress import Progress
from offmodel.lab.rescore import check_detectors
from offmodel.lab.sketch import sketching
from offmodel.lab.stage import Stage, closure
from offmodel.lab.store import Store
from offmodel.report.collect import collect
from offmodel.report.data import Note, ReportData
from offmodel.report.game import Played
from offmodel.report.game import play as play_game
from offmodel.report.game_page import write_game as game_files
from offmodel.report.ledger import Entry, Outcome, outcome_of
from offmodel.report.summary import write_report
from offmodel.spec import Study, check_names
from offmodel.spec.claim import Claim
from offmodel.spec.hashing import stable_hash

STORE = "store"
"""Folder of the store beside the reports."""


class Machines(TypedDict, total=False):
    """Where stages run, and how many at once.

    Attributes:
        workers: How many stages run at once, each in a process of its own. If None: one per core, and one alone where models go
            on a GPU; on Slurm, what it grants. 0, on this machine, is none besides this process.
        on: ``local`` (if left out), ``ray`` or ``slurm``.
        cluster: What stages get there, and how to reach it; see :func:`offmodel.lab.cluster.place`.
        gpu_memory: GiB of one GPU, which no stage may need more of; None asks this machine's driver, 0 checks nothing.
    """

    workers: int | None
    on: str
    cluster: Mapping[str, Any] | None
    gpu_memory: float | None


def run(study: Study, runs: Path | str = "runs", *, command: str = "offmodel.run", **machines: Unpack[Machines]) -> ReportData:
    """Run what a study lacks and gather its results; called again after a stop, it continues.

    Args:
        study: From YAML (:meth:`Study.from_yaml`) or from Python.
        runs: Folder whose ``store`` holds the results of all studies.
        command: What the report says it was made by.
        machines: See :class:`Machines`.

    Raises:
        SpecError: The study names something that is not there, its report would lie in the store, or the cluster is none.
        ClusterError: The cluster cannot be reached, or refuses work; a study that asks for a GPU gets none.
        ModelError: A model cannot be used, or a stage needs more memory than a GPU has.
        StoreError: The store cannot be used.
    """
    _foresee(study, runs, lambda study: make_plan(study).targets, machines)
    plan, store = open_study(study, runs)
    done = execute(plan.targets, store, study.extensions, **machines)
    failed = [Note(what=each.stage.label, why=f"{each.message} (log: {os.path.relpath(each.folder)})") for each in done.failed]
    return collect(plan, store, command=command, failed=failed)


def check_claims(
    files: Iterable[Path | str],
    runs: Path | str = "runs",
    *,
    run_them: bool = True,
    records: Mapping[str, Outcome] | None = None,
    command: str = "check_claims",
    **machines: Unpack[Machines],
) -> Iterator[Entry]:
    """Run the studies of claims, one after the other, and hold each claim against its results.

    Args:
        files: Studies with a ``claim``. All are read before the first is run.
        runs: As in :func:`run`.
        run_them: Whether to run what is missing; else what is there is judged.
        records: What earlier runs came to, by study; one of the same study stands where the store has not all of its results.
        command: As in :func:`run`.
        machines: See :class:`Machines`.

    Raises:
        SpecError: A study tests no claim, or two have one name; or what :func:`run` raises.
    """
    studies: dict[str, tuple[Path, Study, Claim]] = {}
    for path in map(Path, files):
        study = Study.from_yaml(path)
        if study.claim is None:
            raise SpecError(f"{path}: tests no claim; give it a block 'claim', or use offmodel run")
        if study.study in studies:
            raise SpecError(f"{path}: study: {study.study!r} is the name of {studies[study.study][0]}, too; give it another one")
        studies[study.study] = path, study, study.claim
    for name, (path, study, claim) in studies.items():
        if run_them:
            _foresee(study, runs, lambda study: make_plan(study).targets, machines)
        plan, store = open_study(study, runs)
        if run_them:
            execute(plan.targets, store, study.extensions, **machines)
        identity = stable_hash([claim.holds_if, sorted({stage.key for stage in plan.targets})])
        unfinished = sum(row.state == "run" for row in lab.plan_rows(plan.targets, store))
        known = (records or {}).get(name)
        outcome = known if known and known.study == identity else None
        if any(store.get(organism.stage) for organism in plan.organisms) and (outcome is None or not unfinished):
            outcome = outcome_of(collect(plan, store, command=command), study=identity, unfinished=unfinished)
        yield Entry(name, str(path), claim, outcome)


def score_again(
    study: Study, runs: Path | str = "runs", detectors: Mapping[str, str] | None = None, command: str = "offmodel.score_again"
) -> ReportData:
    """Judge the stored answers of a study again and gather its results by the new verdicts; generates and changes nothing in the store.

    Args:
        study: The study as it was run: a changed pair would make other organisms, so another rule comes under another pair's name.
        runs: See :func:`run`.
        detectors: For a pair of the study the pair of the catalog by whose rule its answers are judged; the others are judged by their own
            rule, and tasks by their suite's, as they are today.
        command: What the report says it was made by.

    Raises:
        SpecError: A pair is unknown or cannot be judged so.
        DataError: Nothing of the study is in the store.
    """
    plan, store = open_study(study, runs)
    check_detectors(detectors or {}, study.organisms.pairs)
    return collect(plan, store, command=command, detectors=detectors or {})


def play(
    study: Study,
    runs: Path | str = "runs",
    *,
    run_them: bool = True,
    command: str = "offmodel.play",
    **machines: Unpack[Machines],
) -> Played:
    """Play a study's poisoning game: run the cells that are missing and solve it; called again after a stop, it continues.

    Args:
        study: With a ``game``.
        runs: As in :func:`run`.
        run_them: Whether to run what is missing; else the game must have been played.
        command: As in :func:`run`.
        machines: See :class:`Machines`.

    Raises:
        SpecError: The study has no game; or what :func:`run` raises.
        GameError: A cell has no result, because a stage failed or was not run.
    """
    if study.game is None:
        raise SpecError(f"study {study.study!r} has no game to play; give it a block 'game', or use offmodel run")
    check_names(study)
    report_folder(study.study, runs)
    if run_them:
        _foresee(study, runs, lambda study: Cells(study).first(), machines)
    cells, store = Cells(study), Store(Path(runs) / STORE)

    def bring(wanted: Iterable[Cell]) -> None:
        stages = [stage for cell in wanted for stage in cell.targets]
        if run_them and any(store.get(stage) is None for stage in stages):
            done = execute(stages, store, study.extensions, **machines)
            if done.failed:
                failed = [f"{each.stage.label}: {each.message} (log: {os.path.relpath(each.folder)})" for each in done.failed]
                raise GameError("\n  ".join(["some stages failed; the same command tries them again", *failed]))

    return play_game(study, cells, store, bring, command)


def open_study(study: Study, runs: Path | str = "runs") -> tuple[Plan, Store]:
    """The stages of a study, and the store that holds its results; runs nothing. Raises what :func:`run` does."""
    check_names(study)
    report_folder(study.study, runs)  # refused now, not after hours of training
    return make_plan(study), Store(Path(runs) / STORE)


def execute(stages: Iterable[Stage], store: Store, extensions: Sequence[str] = (), **machines: Unpack[Machines]) -> lab.RunReport:
    """Bring stages into a store and show how it goes; see :func:`offmodel.lab.execute.run`. Workers load the extensions too.

    Raises:
        ClusterError: See :func:`run`.
        ModelError: See :func:`run`.
        SpecError: The tracker that the environment names cannot be used; or see :func:`run`.
    """
    on, workers, stages = machines.get("on", "local"), machines.get("workers"), list(stages)
    where = _check_start(stages, store, machines)
    count = default_workers(stages) if workers is None and on == "local" else workers
    with Progress(count or 1) as progress:
        return lab.run(stages, store, workers=count, modules=(*MODULES, *extensions), on_event=progress, place=where)


def _foresee(study: Study, runs: Path | str, targets: Callable[[Study], Iterable[Stage]], machines: Machines) -> None:
    """Refuse what cannot run where it is to, before models and data are fetched for its plan."""
    check_names(study)
    report_folder(study.study, runs)
    store = Store(Path(runs) / STORE)
    if study.models.device == "cpu":
        _check_start((), store, machines)
        return
    with sketching():
        _check_start(targets(study), store, machines)


def _check_start(stages: Iterable[Stage], store: Store, machines: Machines) -> Place:
    """Refuse what cannot run where it is to; gives that place."""
    where, stages = place(machines.get("on", "local"), machines.get("cluster")), list(stages)
    check_tracker()
    if any(stage.placement.get("device", "cpu") != "cpu" for stage in closure(stages)):
        check_gpus([row.stage for row in lab.plan_rows(stages, store) if row.state == "run"], where, machines.get("gpu_memory"))
    return where


def write(data: ReportData, runs: Path | str = "runs") -> Path:
    """Write ``report.html``, ``results.parquet`` and ``summary.json`` to ``<runs>/<study>``, or to ``again`` in it if judged again.

    Returns:
        The page.

    Raises:
        SpecError: The study is called as the store is.
    """
    folder = report_folder(data.study, runs)
    return write_report(data, folder / "again" if data.rescored else folder)


def write_game(played: Played, runs: Path | str = "runs") -> Path:
    """Write ``game.html``, ``game.json`` and ``game.svg`` to ``<runs>/<study>``.

    Returns:
        The page.

    Raises:
        SpecError: The study is called as the store is.
    """
    return game_files(played, report_folder(played.study.study, runs))


def report_folder(study: str, runs: Path | str = "runs") -> Path:
    """Where the report of a study goes.

    Raises:
        SpecError: The store is there.
    """
    if study.casefold() == STORE:  # some file systems do not tell Store from store
        raise SpecError(f"study: {study!r} is the name of the folder that holds the results of all studies; give it another name")
    return Path(runs) / study
