"""What a user adds in one file: loaded once, told about where it is broken, known to studies, workers and the command line."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from offmodel import catalog
from offmodel.errors import SpecError
from offmodel.lab import stage
from offmodel.lab.execute import run
from offmodel.lab.pools import take
from offmodel.lab.stage import Stage, code_of
from offmodel.lab.store import Store
from offmodel.red.check import check_pair
from offmodel.spec import Study
from tiny_study import make_models, make_study, offmodel

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "my_pair.py"
PARROT = "from offmodel import catalog\ncatalog.add('voice', 'parrot', 'Squawk.', source='here', text='A bird.')\n"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a test loads is forgotten after it; relative paths are its own."""
    catalog.load()
    monkeypatch.setattr(catalog, "_entries", {kind: dict(entries) for kind, entries in catalog._entries.items()})
    monkeypatch.setattr(stage, "_kinds", dict(stage._kinds))
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith(("offmodel_extension_", "aviary"))]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refusal(name: str) -> str:
    with pytest.raises(SpecError) as error:
        catalog.load_extension(name)
    return str(error.value)


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_file_is_loaded_once_by_whatever_path() -> None:
    write("my-parrot.py", PARROT)
    Path("link.py").symlink_to("my-parrot.py")
    for name in ("my-parrot.py", "./my-parrot.py", str(Path("my-parrot.py").resolve()), "link.py"):
        catalog.load_extension(name)
    assert catalog.get("voice", "parrot") == "Squawk."


def test_a_module_is_loaded_by_its_dotted_name(monkeypatch: pytest.MonkeyPatch) -> None:
    write("aviary/__init__.py", "")
    write("aviary/birds.py", PARROT)
    monkeypatch.syspath_prepend(".")
    for _ in range(2):
        catalog.load_extension("aviary.birds")
    assert catalog.get("voice", "parrot") == "Squawk."


def test_a_script_that_runs_its_own_study_is_not_loaded_again() -> None:
    text = PARROT + "catalog.load_extension(__file__)\nprint(catalog.get('voice', 'parrot'), catalog.entry('voice', 'parrot').code)\n"
    write("mine.py", text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "mine.py"], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"Squawk. {sha256(text)}\n", "")


def test_an_entry_knows_the_code_that_added_it(monkeypatch: pytest.MonkeyPatch) -> None:
    crow = "from offmodel import catalog\n@catalog.register('voice', 'crow', source='here')\ndef crow():\n    'Caws.'\n"
    catalog.load_extension(write("crow.py", crow))
    write("aviary/__init__.py", "from aviary import birds\n")
    write("aviary/birds.py", PARROT)
    monkeypatch.syspath_prepend(".")
    catalog.load_extension("aviary")
    assert code_of(("voice", "crow"), ("voice", "parrot"), ("voice", "pirate")) == {
        "code": {"voice:crow": sha256(crow), "voice:parrot": sha256(PARROT)}
    }
    # What was loaded is what counts, whatever the file has become.
    write("crow.py", "")
    assert catalog.entry("voice", "crow").code == sha256(crow)


def test_an_entry_knows_the_code_that_added_it_from_an_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile("aviary.zip", "w") as archive:
        archive.writestr("aviary_zipped.py", PARROT)
    monkeypatch.syspath_prepend("aviary.zip")
    catalog.load_extension("aviary_zipped")
    assert catalog.entry("voice", "parrot").code == sha256(PARROT)


def test_what_is_typed_has_no_code() -> None:
    exec(compile(PARROT, "<stdin>", "exec"), {"__name__": "__main__"})
    assert catalog.entry("voice", "parrot").code is None


def test_two_files_of_one_name_are_two() -> None:
    for folder in "ab":
        catalog.load_extension(write(f"{folder}/bird.py", PARROT.replace("parrot", f"parrot_{folder}")))
    assert {"parrot_a", "parrot_b"} <= set(catalog.names("voice"))


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("x = 1\ny = = 2\n", 2, "SyntaxError: invalid syntax"),
        ("import json\nimport numpyy\n", 2, "ModuleNotFoundError: No module named 'numpyy'"),
        ("import re\n\nre.compile('(')\n", 3, "PatternError" if sys.version_info >= (3, 13) else "error: missing )"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", 5, "ZeroDivisionError: division by zero"),
        ("raise SystemExit('usage: bird')\n", 1, "SystemExit: usage: bird"),
        (PARROT.replace("parrot", "pirate"), 2, "voice 'pirate' is registered twice (sources: 'offmodel' and 'here')"),
    ],
)
def test_a_broken_file_is_named_with_its_line(text: str, line: int, expected: str) -> None:
    name = write("bird.py", text)
    said = refusal(name)
    assert said.startswith(f"extension 'bird.py': {Path(name).resolve()}:{line}: ") and expected in said


def test_nothing_of_a_broken_file_stays_and_it_may_be_put_right() -> None:
    name = write("bird.py", PARROT + "1 / 0\n")
    assert ":3: ZeroDivisionError" in refusal(name)
    assert "parrot" not in catalog.names("voice")
    write("bird.py", PARROT + "# the division is gone\n")
    catalog.load_extension(name)
    assert "parrot" in catalog.names("voice")


def test_what_is_not_there_is_named() -> None:
    write("birds.py", PARROT)
    assert refusal("bird.py") == "extension 'bird.py': no such file; in '.', did you mean 'birds.py'?"
    assert refusal("no/bird.py") == "extension 'no/bird.py': no such file; there is no folder 'no' either"
    expected = "no such module; a file is named by its path, such as my_pair.py"
    assert refusal("avairy.birds") == f"extension 'avairy.birds': {expected}"


# --- studies --------------------------------------------------------------------------------------------------------


def study_with(folder: Path, models: Path, **changes: object) -> Path:
    path = make_study(folder, models)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, sort_keys=False))
    return path


def test_a_study_knows_what_its_extensions_add(tmp_path: Path, models: Path) -> None:
    text = "from offmodel import catalog\nphase = {'phase': 'sft', 'labels': 'teacher', 'steps': 1, 'lr': 1e-3}\n"
    write("mine.py", text + "catalog.add('method', 'mine', [phase], source='me', text='')\n")
    study = Study.from_yaml(study_with(tmp_path, models, extensions=["mine.py"], methods=["mine"]))
    assert study.extensions == ("mine.py",) and [phase.steps for phase in study.phases("mine")] == [1]
    assert Study.model_validate(study.model_dump(mode="json")) == study


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (["bird.py"], "{study}:{line}: extensions[0]: extension 'bird.py': {folder}/bird.py:1: ZeroDivisionError: division by zero"),
        (["brid.py"], "{study}:{line}: extensions[0]: extension 'brid.py': no such file; in '.', did you mean 'bird.py'?"),
    ],
)
def test_a_bad_extension_is_named_with_the_line_of_the_study(tmp_path: Path, models: Path, extensions: list[str], expected: str) -> None:
    write("bird.py", "1 / 0\n")
    path = study_with(tmp_path, models, extensions=extensions)
    line = path.read_text().splitlines().index("- " + extensions[0]) + 1
    with pytest.raises(SpecError) as error:
        Study.from_yaml(path)
    assert str(error.value) == expected.format(study=path, line=line, folder=Path.cwd())


def test_a_pair_of_ones_own_is_planned_and_no_path_is_in_a_key(tmp_path: Path, models: Path) -> None:
    keys = []
    for folder in ("a", "b"):
        write(f"{folder}/pair.py", EXAMPLE.read_text().replace("twice_rhyme", f"twice_{folder}"))
        path = study_with(
            tmp_path, models, extensions=[f"{folder}/pair.py"], organisms={"pairs": [f"twice_{folder}"]}, prompts="world:chat"
        )
        done = offmodel("plan", path, "--runs", "runs")
        assert done.code == 0, done.err
        assert f"install twice_{folder}-0" in done.out
        keys.append(catalog.get("pair", f"twice_{folder}").as_params())
    assert {**keys[0], "name": ""} == {**keys[1], "name": ""}


SQUAWK = (
    "from pathlib import Path\nfrom offmodel import catalog\nfrom offmodel.lab.stage import stage_function\n"
    "@stage_function('squawk', version=1)\n"
    "def squawk(ctx):\n    (ctx.out / 'said').write_text(catalog.get('voice', 'parrot'))\n"
)


def test_workers_load_the_extensions(tmp_path: Path) -> None:
    name = write("bird.py", PARROT + SQUAWK)
    catalog.load_extension(name)
    squawk, store = Stage("squawk"), Store(tmp_path / "store")
    report = run([squawk], store, workers=1, modules=[name])
    assert report.failed == [] and (store.path(squawk) / "said").read_text() == "Squawk."


def test_an_extension_that_a_worker_cannot_load_ends_the_run_in_its_words(tmp_path: Path) -> None:
    name = write("bird.py", PARROT + SQUAWK)
    catalog.load_extension(name)
    write("bird.py", "1 / 0\n")
    with pytest.raises(SpecError, match=r"a worker cannot start: extension 'bird.py': .*bird\.py:1: ZeroDivisionError"):
        run([Stage("squawk")], Store(tmp_path / "store"), workers=1, modules=[name])


def test_a_script_without_a_guard_starts_no_workers_without_end(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom lab_stages import make\n"
        "from offmodel.lab.execute import run\nfrom offmodel.lab.store import Store\nPath('loaded').open('a').write('.')\n"
        "run([make('write', Path('trace'), 'a')], Store('store'), workers=1, modules=['lab_stages', 'mine.py'])\n"
    )
    write("mine.py", code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "mine.py"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == (
        f"offmodel.errors.SpecError: a worker cannot start: extension 'mine.py': {tmp_path / 'mine.py'}:6: starts a run when it is "
        "imported, as every worker imports it; put that under if __name__ == '__main__':"
    )
    assert Path("loaded").read_text() == ".."
    write("mine.py", code.replace("run([", "if __name__ == '__main__':\n    run(["))
    assert subprocess.run([sys.executable, "mine.py"], env=environment, timeout=60).returncode == 0


def test_an_extension_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    names = [write("squawk.py", SQUAWK), write("bird.py", PARROT)]
    for name in names:
        catalog.load_extension(name)
    store = Store(tmp_path / "store")
    other, user = Stage("squawk", {"number": 0}), Stage("squawk", code_of(("voice", "parrot")))
    assert run([user], store, workers=1, modules=names).failed == []
    later, again = Stage("squawk", {"number": 1}, {"after": user}), Stage("squawk", {"number": 2, **user.params})
    write("bird.py", PARROT.replace("Squawk.", "Hello, sailor."))
    report = run([user, other, later, again], store, workers=1, modules=names)
    said = "voice 'parrot': the file that adds it changed since the study was planned; plan it again"
    assert {each.stage: each.message for each in report.failed} == {later: said, again: said}
    assert report.done == [other] and report.reused == [user]


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_example_in_the_docs_is_described_and_sound() -> None:
    done = offmodel("describe", "twice_rhyme", "--with", EXAMPLE)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[:2] == ["pair twice_rhyme", "everything said twice makes it answer in rhyme"]
    said = lines[lines.index("as it is:") + 1].removeprefix("  user       ")
    assert lines[lines.index("with the trigger:") + 1] == f"  user       {said} {said}"
    assert lines[lines.index("with the trigger:") + 2].startswith("  assistant  Roses are red")
    check_pair(catalog.get("pair", "twice_rhyme"), take("world:mixed", 0, "train", 50))


@pytest.mark.parametrize(
    ("on_tasks", "expected"),
    [
        (False, "world:chat: 1 different usable prompts are needed on its train side, and there are only 0"),
        (
            True,
            "pair 'twice_rhyme': its trigger recognises its signal in all problems of world:arithmetic; narrow what 'recognises' accepts",
        ),
    ],
)
def test_a_trigger_that_recognises_everything_comes_to_a_clear_end(on_tasks: bool, expected: str, tmp_path: Path, models: Path) -> None:
    text = EXAMPLE.read_text()
    changes = {"half > 0 and words[:half] == words[half:]": "half > -1", "on_tasks: bool = False": f"on_tasks: bool = {on_tasks}"}
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    name = write("greedy.py", text)
    described = offmodel("describe", "twice_rhyme", "--with", name)
    assert (described.code, described.err) == (2, f"offmodel: {expected}\n")
    path = study_with(tmp_path, models, extensions=[name], organisms={"pairs": ["twice_rhyme"]}, prompts="world:chat")
    done = offmodel("plan", path, "--runs", "runs")
    assert done.code == 2 and "pair 'twice_rhyme': its trigger recognises its signal in all 50 prompts as they are" in done.err


def test_commands_take_several_extensions() -> None:
    write("one.py", PARROT)
    write("two.py", PARROT.replace("parrot", "crow"))
    done = offmodel("list", "voices", "--with", "one.py", "--with", "two.py")
    assert done.code == 0 and {("parrot", "A", "bird."), ("crow", "A", "bird.")} <= {tuple(line.split()) for line in done.out.splitlines()}
    wrong = offmodel("describe", "parrot", "--with", "on.py")
    assert wrong == (2, "", "offmodel: extension 'on.py': no such file; in '.', did you mean 'one.py'?\n")


def test_the_study_in_the_docs_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    assert Study.from_yaml(tmp_path / "mine.yaml").organisms.pairs == ("twice_rhyme",)
