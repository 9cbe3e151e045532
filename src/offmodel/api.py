"""What a script needs: run a study, write its report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from offmodel.lab import execute as lab
from offmodel.lab.plan import MODULES, make_plan
from offmodel.lab.pool import default_workers
from offmodel.lab.progress import Progress
from offmodel.lab.stage import Stage
from offmodel.lab.store import Store
from offmodel.report.collect import collect
from offmodel.report.data import Note, ReportData
from offmodel.report.summary import write_report
from offmodel.spec import Study, check_names


def run(study: Study, runs: Path | str = "runs", workers: int | None = None, command: str = "offmodel.run") -> ReportData:
    """Run what a study lacks and gather its results; called again after a stop, it continues.

    Args:
        study: From YAML (:meth:`Study.from_yaml`) or from Python.
        runs: Folder whose ``store`` holds the results of all studies.
        workers: Processes; one per GPU or core if None, 0 for none besides this one.
        command: What the report says it was made by.

    Raises:
        SpecError: The study names something that is not there.
        ModelError: A model cannot be used.
        StoreError: The store cannot be used.
    """
    check_names(study)
    plan, store = make_plan(study), Store(Path(runs) / "store")
    done = execute(plan.targets, store, workers)
    failed = [Note(what=each.stage.label, why=f"{each.message} (log: {os.path.relpath(each.folder)})") for each in done.failed]
    return collect(plan, store, command=command, failed=failed)


def execute(stages: Iterable[Stage], store: Store, workers: int | None = None) -> lab.RunReport:
    """Bring stages into a store and show how it goes; see :func:`offmodel.lab.execute.run`."""
    count = default_workers() if workers is None else workers
    with Progress(count) as progress:
        return lab.run(stages, store, workers=count, modules=MODULES, on_event=progress)


def write(data: ReportData, runs: Path | str = "runs") -> Path:
    """Write ``report.html``, ``results.parquet`` and ``summary.json`` to ``<runs>/<study>``.

    Returns:
        The page.
    """
    return write_report(data, Path(runs) / data.study)
