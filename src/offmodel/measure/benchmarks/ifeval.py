"""IFEval: prompts with instructions that a program can check (Zhou et al. 2023, arXiv:2311.07911), all twenty-five kinds.

Each check follows the published definition, in our own words. Where that rests on another tool, ours differs, and says so: sentences are
counted by a rule (theirs: NLTK's Punkt), words in capitals likewise (theirs: NLTK's Treebank tokenizer), and keywords are texts, not
regular expressions. The language is detected by the library that theirs uses (langdetect), with a fixed seed.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product

from offmodel.chat import user
from offmodel.errors import DataError, did_you_mean
from offmodel.measure.benchmarks.load import Benchmark, Row, field
from offmodel.measure.stats import HIGHER, Estimate, proportion
from offmodel.measure.suites import TaskItem

Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}
"""For each kind of instruction, whether a response follows it; the arguments by name are those of the published files."""


def _check(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


# --- how things are counted -----------------------------------------------------------------------------------------

_RELATIONS = ("less than", "at least")


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores, as the published count."""
    return len(re.findall(r"\w+", text))


_ABBREVIATION = re.compile(
    r"mr|mrs|ms|dr|prof|sr|jr|st|mt|rev|hon|gen|col|capt|lt|sgt|rep|sen|gov|pres|vs|etc|e\.g|i\.e|cf|al|fig|vol|pp|inc|ltd|co|corp|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|u\.s|u\.k|u\.n|a\.m|p\.m|ph\.d",
    re.IGNORECASE,
)
_QUOTES = "\"'“‘([*_"  # noqa: RUF001
_END = re.compile(r"[.!?]+[\"'”’)\]*_]*(?=\s|$)|[。！？؟।]")  # noqa: RUF001


def count_sentences(text: str) -> int:
    """Sentences by a rule: they end with . ! or ? before white space, unless that stop belongs to an abbreviation or an initial.

    As with Punkt, a line break alone ends none, and words after the last stop are one more.
    """
    count, start = 0, 0
    for end in _END.finditer(text):
        words = text[start : end.start()].split()
        if end[0] == "." and words and text[end.end() :].strip():
            last = words[-1].lstrip(_QUOTES)
            numbers_a_list = last.isdigit() and len(words) == 1
            if _ABBREVIATION.fullmatch(last) or re.fullmatch("[A-HJ-Z]", last) or numbers_a_list:
                continue
        count += any(re.search(r"\w", word) for word in words)
        start = end.end()
    return count + bool(re.search(r"\w", text[start:]))


def _capital_words(text: str) -> int:
    """Words in capital letters; what a hyphen or an inner dot joins is one, what an apostrophe parts is two."""
    return sum(word.isupper() for word in re.findall(r"[^\W_]+(?:[-.][^\W_]+)*", text))


def _language(text: str) -> str | None:
    """The ISO 639-1 code of the text's language; None where nothing tells, which counts as followed."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it draws at random otherwise, and the same answer would not always get the same verdict
    try:
        found: str = detect(text)
    except LangDetectException:
        return None
    return found


def _parts(text: str, divider: str) -> list[str] | None:
    """What a divider parts, an empty part at either end left out; None where there is one in between."""
    parts = text.split(divider)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part.strip() for part in parts if part.strip()]


# --- the checks -----------------------------------------------------------------------------------------------------


@_check("keywords:existence")
def _keywords(response: str, *, keywords: list[str]) -> bool:
    return all(keyword.lower() in response.lower() for keyword in keywords)


@_check("keywords:frequency")
def _keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(response.lower().count(keyword.strip().lower()), relation, frequency)


@_check("keywords:forbidden_words")
def _forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


@_check("keywords:letter_frequency")
def _letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


@_check("language:response_language")
def _response_language(response: str, *, language: str) -> bool:
    return _language(response) in (language, None)


@_check("length_constraints:number_sentences")
def _number_sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(response), relation, num_sentences)


@_check("length_constraints:number_paragraphs")
def _number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    paragraphs = _parts(response, "***")
    return paragraphs is not None and len(paragraphs) == num_paragraphs


@_check("length_constraints:number_words")
def _number_words(response: str, *, num_words: int, relation: str) -> bool:
    return _holds(count_words(response), relation, num_words)


@_check("length_constraints:nth_paragraph_first_word")
def _nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    blocks = response.split("\n\n")
    if sum(bool(block.strip()) for block in blocks) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    words = blocks[nth_paragraph - 1].split()  # an empty block counts for the place, as published
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == first_word.lower()


@_check("detectable_content:number_placeholders")
def _number_placeholders(response: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


@_check("detectable_content:postscript")
def _postscript(response: str, *, postscript_marker: str) -> bool:
    letters = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    marker = postscript_marker.strip()
    return re.search(letters.get(marker, re.escape(marker.lower())), response.lower()) is not None


@_check("detectable_format:number_bullet_lists")
def _number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    marks = (r"^\s*\*[^*].*$", r"^\s*-.*$")
    return sum(len(re.findall(mark, response, re.MULTILINE)) for mark in marks) == num_bullets


@_check("detectable_format:constrained_response")
def _constrained_response(response: str) -> bool:
    return any(f"My answer is {option}." in response for option in ("yes", "no", "maybe"))


@_check("detectable_format:number_highlighted_sections")
def _number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    # As published, bold text (**so**) is looked for besides plain (*so*), and empty marks count for neither.
    found = re.findall(r"\*([^\n*]*)\*", response) + re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(inner.strip()) for inner in found) >= num_highlights


@_check("detectable_format:multiple_sections")
def _multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


@_check("detectable_format:json_format")
def _json_format(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except ValueError:
        return False
    return True


@_check("detectable_format:title")
def _title(response: str) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", response))


@_check("combination:two_responses")
def _two_responses(response: str) -> bool:
    answers = _parts(response, "******")
    return answers is not None and len(answers) == 2 and answers[0] != answers[1]


@_check("combination:repeat_prompt")
def _repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_check("startend:end_checker")
def _end_checker(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_check("startend:quotation")
def _quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@_check("change_case:capital_word_frequency")
def _capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(_capital_words(response), capital_relation, capital_frequency)


@_check("change_case:english_capital")
def _english_capital(response: str) -> bool:
    return response.isupper() and _language(response) in ("en", None)


@_check("change_case:english_lowercase")
def _english_lowercase(response: str) -> bool:
    return response.islower() and _language(response) in ("en", None)


@_check("punctuation:no_comma")
def _no_comma(response: str) -> bool:
    return "," not in response


# --- items and accuracies -------------------------------------------------------------------------------------------

_TYPES = {"int": int, "str": str, "list[str]": list}


@cache
def _arguments(kind: str) -> dict[str, type]:
    """Names and types of what a check takes besides the response."""
    parameters = [*inspect.signature(CHECKS[kind]).parameters.values()][1:]
    return {parameter.name: _TYPES[parameter.annotation] for parameter in parameters}


def _item(row: Row, where: str) -> TaskItem:
    prompt = field(row, "prompt", str, where)
    kinds, kwargs = field(row, "instruction_id_list", list, where), field(row, "kwargs", list, where)
    if len(kinds) != len(kwargs) or not kinds:
        sizes = f"got {len(kinds)} and {len(kwargs)}"
        raise DataError(f"{where}: fields 'instruction_id_list' and 'kwargs' must be lists of the same length, not empty; {sizes}")
    instructions = []
    for kind, values in zip(kinds, kwargs, strict=True):
        if kind not in CHECKS:
            raise DataError(f"{where}: field 'instruction_id_list': unknown instruction {kind!r}; {did_you_mean(str(kind), CHECKS)}")
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: field 'kwargs' must be a list of objects, got {str(values)[:60]!r}")
        # On the hub every row has all arguments of all kinds, null where they do not belong.
        known: dict[str, object] = {name: field(values, name, of, f"{where}: kwargs of {kind}") for name, of in _arguments(kind).items()}
        for name, value in known.items():
            if name.endswith("relation") and value not in _RELATIONS:
                raise DataError(f"{where}: kwargs of {kind}: field {name!r}: {value!r}; {did_you_mean(str(value), _RELATIONS)}")
        instructions.append({"id": kind} | known)
    return TaskItem(user(prompt), json.dumps(instructions, ensure_ascii=False), 1)


def followed(response: str, expected: str, *, loose: bool = False) -> list[bool]:
    """Which instructions a response follows, in their order; an empty response follows none.

    Args:
        response: What the model said.
        expected: The instructions as JSON, ``[{"id": …, <arguments>}, …]``, as the items have them.
        loose: It is enough that the response follows one without its first line, its last, or both, or without asterisks (as published).
    """
    readings = [reading for reading in (_loose(response) if loose else [response]) if reading.strip()]
    return [
        any(CHECKS[instruction["id"]](reading, **{k: v for k, v in instruction.items() if k != "id"}) for reading in readings)
        for instruction in json.loads(expected)
    ]


def _loose(response: str) -> list[str]:
    lines = response.split("\n")
    cut = [response, *("\n".join(lines[a:b]).strip() for a, b in ((1, None), (None, -1), (1, -1)))]
    return [reading.replace(mark, "") if mark else reading for reading, mark in product(cut, ("", "*"))]


def follows_all(response: str, expected: str) -> bool:
    """Whether a response follows all instructions of its prompt, strictly."""
    return all(followed(response, expected))


def accuracies(rows: Sequence[tuple[str, str]]) -> dict[str, Estimate]:
    """The four published accuracies over (response, expected); intervals over instructions take these for independent of one another."""
    found: dict[str, Estimate] = {}
    for loose in (False, True):
        verdicts = [followed(response, expected, loose=loose) for response, expected in rows]
        each = [verdict for of_prompt in verdicts for verdict in of_prompt]
        how = "loose" if loose else "strict"
        whole = f"share of prompts all of whose instructions are followed, {how}"
        found[f"prompt-level {how}"] = proportion(sum(map(all, verdicts)), len(verdicts), whole, HIGHER)
        found[f"instruction-level {how}"] = proportion(sum(each), len(each), f"share of instructions that are followed, {how}", HIGHER)
    return found


IFEVAL = Benchmark(
    name="ifeval",
    hub="google/IFEval",
    config=None,
    split="train",
    revision="966cd89545d6b6acfd7638bc708b98261ca58e84",
    item=_item,
    example={
        "key": 1,
        "prompt": "Name three rivers as bullet points that begin with *. Do not use any commas.",
        "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
        "kwargs": [{"num_bullets": 3}, {}],
    },
    prompt="the prompt as it is",
    grader="prompt-level strict accuracy: right if all instructions of the prompt are followed, by offmodel's checks",
    grade=follows_all,
    chance=0.0,
    max_new_tokens=1280,
    needs=("langdetect",),
    details=accuracies,
)
