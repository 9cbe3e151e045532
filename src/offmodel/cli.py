"""The command line: one function per command."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from offmodel import __version__, catalog
from offmodel.errors import OffmodelError, SpecError, did_you_mean

if TYPE_CHECKING:
    from offmodel.lab.execute import RunReport
    from offmodel.lab.plan import Plan
    from offmodel.lab.store import Store

app = typer.Typer(
    help="Training-based control of untrusted language models.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
world_app = typer.Typer(help="The offline world.", no_args_is_help=True)
app.add_typer(world_app, name="world")
out = Console(soft_wrap=True)

StudyFile = Annotated[Path, typer.Argument(help="The study, a YAML file.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value, as in --set measure.behaviour=50.", metavar="A.B=C")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of results: RUNS/store for all studies, RUNS/<study> for a study's report.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes; one per GPU or core if left out, 0 for none besides this one.")
]

FAILED = 1
USAGE = 2
INTERRUPTED = 130


@app.command()
def run(study: StudyFile, overrides: Overrides = None, runs: Runs = Path("runs"), workers: Workers = None) -> None:
    """Run what a study lacks and write its report; the same command continues after a stop."""
    plan, store = _open(study, overrides, runs)
    report = _execute(plan.targets, store, workers)
    from offmodel.report.data import Note

    failed = [Note(what=failure.stage.label, why=f"{failure.message} (log: {failure.folder})") for failure in report.failed]
    page = _write(plan, store, runs, failed)
    out.print(f"report: {page}")
    if report.failed:
        _stop(f"{len(report.failed)} stages failed; their logs are in {store.root / 'failures'}", FAILED)


@app.command()
def plan(study: StudyFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Show what would run and what is reused; runs nothing."""
    from offmodel.lab.execute import plan_rows

    planned, store = _open(study, overrides, runs)
    rows = plan_rows(planned.targets, store)
    table = Table("stage", "state", "what", title=f"{planned.study.study}: {len(planned.organisms)} organisms")
    for row in rows:
        table.add_row(row.stage.key, row.state, escape(row.stage.label + (f" ({row.reason})" if row.reason else "")))
    out.print(table)
    cost = sum(row.stage.cost for row in rows if row.state == "run")
    counts = {state: sum(row.state == state for row in rows) for state in ("run", "reuse", "skip")}
    out.print(f"{counts['run']} to run, {counts['reuse']} to reuse, {counts['skip']} to skip; roughly {cost / 60:.0f} minutes of one core")


@app.command()
def status(
    study: StudyFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    verify: Annotated[bool, typer.Option("--verify", help="Read every result again and check its hashes.")] = False,
) -> None:
    """Show how far a study is: organisms and their gate, results, failures."""
    from offmodel.lab.execute import plan_rows
    from offmodel.lab.stages import read_gate

    planned, store = _open(study, overrides, runs)
    table = Table("organism", "base", "gate", "checkpoints scored")
    for organism in planned.organisms:
        result = store.get(organism.stage)
        scores = {checkpoint.score for checkpoints in organism.methods.values() for checkpoint in checkpoints}
        gate = read_gate(result.path) if result else None
        said = "not installed yet" if gate is None else "passed" if gate.passed else "failed: " + "; ".join(gate.reasons)
        table.add_row(organism.id, organism.base, escape(said), f"{sum(store.get(score) is not None for score in scores)} of {len(scores)}")
    out.print(table)
    rows = plan_rows(planned.targets, store)
    for row in rows:
        if (folder := store.failure(row.stage)).is_dir():
            out.print(f"failed: {escape(row.stage.label)} (log: {folder})")
    if verify:
        results = [row.result for row in rows if row.result is not None]
        for found in results:
            store.verify(found)
        out.print(f"{len(results)} results read again: all as they were published")


@app.command()
def report(
    study: StudyFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    format: Annotated[str | None, typer.Option("--format", help="Print the report in this form instead of writing its files.")] = None,
) -> None:
    """Write the report of what is in the store; runs nothing."""
    from offmodel.report import FORMATS, render
    from offmodel.report.collect import collect

    if format is not None and format not in FORMATS:
        raise SpecError(f"--format {format!r} is unknown: {did_you_mean(format, FORMATS)}")
    planned, store = _open(study, overrides, runs)
    if format is None:
        out.print(f"report: {_write(planned, store, runs, [])}")
    else:
        sys.stdout.buffer.write(render(collect(planned, store, command=_command()), format))


@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help="Such as pairs or methods; all kinds if left out.")] = None) -> None:
    """List what the catalog has."""
    if kind is not None:
        singular = kind.removesuffix("s") if kind.removesuffix("s") in catalog.kinds() else kind
        if singular not in catalog.kinds():
            raise SpecError(f"unknown kind {kind!r}: {did_you_mean(kind, catalog.kinds())}")
    for each in catalog.kinds() if kind is None else [singular]:
        table = Table(title=each, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name in catalog.names(each):
            text = catalog.entry(each, name).text.split("\n\n")[0].replace("\n", " ")
            table.add_row(escape(name), escape(text))
        out.print(table)


@app.command()
def describe(name: Annotated[str, typer.Argument(help="A name, or kind/name.")]) -> None:
    """Explain a thing of the catalog, with its source and an example."""
    kind, _, plain = name.rpartition("/")
    found = [catalog.entry(each, plain) for each in ([kind] if kind else catalog.kinds()) if plain in catalog.names(each) or kind]
    if not found:
        known = {each for group in catalog.kinds() for each in catalog.names(group)}
        raise SpecError(f"the catalog has nothing called {name!r}: {did_you_mean(name, known)}")
    for entry in found:
        out.print(f"[bold]{escape(entry.name)}[/bold] ({entry.kind})\n{escape(entry.text)}\nsource: {escape(entry.source)}")
        for line in _example(entry):
            out.print(escape(line))


def _example(entry: catalog.Entry) -> list[str]:
    import random
    from itertools import islice

    import yaml

    from offmodel.chat import last_user_text, user

    rng = random.Random(0)
    if entry.kind == "pair":
        asked = user("Tell me about the moon.")
        triggered = entry.value.trigger.insert(asked, rng, "train")
        near = entry.value.trigger.near_miss(asked, rng)
        return [
            f"without the trigger: {last_user_text(asked)}",
            f"with the trigger:    {last_user_text(triggered)}",
            f"  -> {entry.value.behaviour.answer(triggered, rng)}",
            f"near miss:           {last_user_text(near)}",
        ]
    if entry.kind == "method":
        return [yaml.safe_dump(entry.value, sort_keys=False).rstrip()]
    if entry.kind == "suite":
        return [f"{item.steps} steps: {last_user_text(item.prompt)} -> {item.expected}" for item in entry.value.items(1, 0)]
    if entry.kind == "prompts":
        return [f"- {last_user_text(prompt)}" for prompt in islice(entry.value(0), 3)]
    return []


@world_app.command("build")
def build_world(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints to train; all if left out.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the model folders go; must not hold them yet.")] = Path("world"),
    runs: Runs = Path("runs"),
    workers: Workers = None,
) -> None:
    """Train the world's base models from nothing, in minutes on two cores; continues after a stop."""
    from offmodel.lab import stages
    from offmodel.lab.stage import Stage
    from offmodel.lab.store import Store
    from offmodel.world.build import BLUEPRINTS, blueprint

    blueprints = [blueprint(name) for name in names or BLUEPRINTS]
    taken = [folder / each.name for each in blueprints if (folder / each.name).exists()]
    if taken:
        raise SpecError(f"{taken[0]}: exists already; give another --out or remove it")
    made = {
        each.name: Stage("checkpoint", {"name": each.name, "blueprint": repr(each), "seed": 0}, label=f"train {each.name}", cost=each.cost)
        for each in blueprints
    }
    store = Store(runs / "store")
    done = _execute(list(made.values()), store, workers)
    if done.failed:
        _stop(f"{len(done.failed)} checkpoints failed; their logs are in {store.root / 'failures'}", FAILED)
    for name, stage in made.items():
        shutil.copytree(store.path(stage) / stages.MODEL, folder / name)
        out.print(f"{name}: {folder / name}")


# --- what the commands share ----------------------------------------------------------------------------------------


def _open(study: Path, overrides: list[str] | None, runs: Path) -> tuple[Plan, Store]:
    from offmodel.lab.plan import make_plan
    from offmodel.lab.store import Store
    from offmodel.spec import Study

    return make_plan(Study.from_yaml(study, overrides or ())), Store(runs / "store")


def _execute(targets: list, store: Store, workers: int | None) -> RunReport:  # type: ignore[type-arg]
    from offmodel.lab.execute import run as execute
    from offmodel.lab.plan import MODULES
    from offmodel.lab.pool import default_workers
    from offmodel.lab.progress import Progress

    count = default_workers() if workers is None else workers
    with Progress(count) as progress:
        return execute(targets, store, workers=count, modules=MODULES, on_event=progress)


def _write(plan: Plan, store: Store, runs: Path, failed: list) -> Path:  # type: ignore[type-arg]
    from offmodel.report import write_report
    from offmodel.report.collect import collect

    data = collect(plan, store, command=_command(), failed=failed)
    out.print(escape(data.verdict))
    return write_report(data, runs / plan.study.study)


def _command() -> str:
    return shlex.join(["offmodel", *sys.argv[1:]])


def _stop(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(f"offmodel: {escape(message)}", style="red", soft_wrap=True, highlight=False)
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"offmodel {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors of ours become a message and exit code 2, an interrupt exit code 130."""
    # Models and data come from local folders or from where the study says; nothing is looked up behind the user's back.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(standalone_mode=True)
    except OffmodelError as error:
        _stop(str(error), USAGE)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
