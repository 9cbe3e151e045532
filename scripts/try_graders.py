"""Try the graders of the benchmarks on every row of published files, and print how often they are right, as Markdown.

python scripts/try_graders.py gsm8k=$DATA/gsm8k/test.jsonl math500=$DATA/math500/test.jsonl ...

A row's own answer must grade as right, in each form that it can be put into; an answer that was changed, and that of another row, as
wrong. IFEval has no answers: for every instruction of every row a response is written that just follows it, and one that just does not.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offmodel import catalog
from offmodel.chat import last_user_text, read_rows
from offmodel.measure.benchmarks import Published
from offmodel.measure.benchmarks.choices import LETTERS


class Case(NamedTuple):
    """A response to an item, and whether it must grade as right."""

    what: str
    response: str
    expected: str
    right: bool


def _nudged(answer: str) -> str:
    """An answer close to another one: its last number is one more, or its word another, or the whole one more."""
    numbers = list(re.finditer(r"\d+", answer))
    if numbers:
        last = numbers[-1]
        return answer[: last.start()] + str(int(last[0]) + 1) + answer[last.end() :]
    if "\\text" in answer:
        return re.sub(r"\\text\s*\{[^{}]*\}", r"\\text{none of these}", answer)
    return f"{answer.replace('$', '')}+1"


def _boxed(answer: str) -> str:
    without_dollars = re.sub(r"(?<!\\)\$", "", answer)
    return f"The answer is $\\boxed{{{without_dollars}}}$."


def _maths(suite: Published, rows: Sequence[dict[str, Any]]) -> Iterator[Case]:
    items = [suite.rows.benchmark.item(row, "") for row in rows]
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        answer, other = item.expected, items[(i + 1) % len(items)].expected
        yield Case("its answer, boxed", _boxed(answer), answer, True)
        if "answer" in row and "####" in row["answer"]:
            yield Case("the published solution, after ####", row["answer"], answer, True)
            yield Case("its answer, stated in words", f"The answer is {answer}.", answer, True)
        elif isinstance(row["solution"], str):
            yield Case("the published solution, with its box", row["solution"], answer, True)
        yield Case("its answer, changed", _boxed(_nudged(answer)), answer, False)
        if other.replace("$", "") != answer.replace("$", ""):
            yield Case("the answer of the next row", _boxed(other), answer, False)


def _choices(suite: Published, rows: Sequence[dict[str, Any]]) -> Iterator[Case]:
    for row in rows:
        expected = suite.rows.benchmark.item(row, "").expected
        for letter in LETTERS:
            right = letter == expected
            what = "its letter" if right else "another letter"
            yield Case(f"{what}, on a line of its own", f"Let me think.\nAnswer: {letter}", expected, right)
            yield Case(f"{what}, bare", f"{letter}. {row['choices'][LETTERS.index(letter)]}", expected, right)


# --- IFEval ---------------------------------------------------------------------------------------------------------

ENGLISH = "All human beings are born free and equal in dignity and rights"
ARTICLE = {  # the first words of the Universal Declaration of Human Rights
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಹುಟ್ಟಿದ್ದಾರೆ ಹಾಗೂ ಘನತೆ ಮತ್ತು ಹಕ್ಕುಗಳಲ್ಲಿ ಸಮಾನರಾಗಿದ್ದಾರೆ",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다",
    "mr": "सर्व मानवी व्यक्ति जन्मतःच स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व समान अधिकार आहेत",
    "ne": "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् ती सबैको समान अधिकार र महत्व छ",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ ਸ਼ਾਨ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах",
    "sw": "Watu wote wamezaliwa huru hadhi na haki zao ni sawa",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు",
    "th": "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi",
}


def _counted(made: Callable[[int], str], relation: str, n: int) -> tuple[str, str]:
    """Responses with just as many things as are allowed, and with one that makes it wrong."""
    return (made(n - 1), made(n)) if relation == "less than" else (made(n), made(n - 1))


def _times(piece: str, joint: str = " ") -> Callable[[int], str]:
    return lambda n: joint.join(["–", *[piece] * n])


def written(kind: str, prompt: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """A response that just follows an instruction, and one that just does not."""
    a = arguments
    match kind:
        case "keywords:existence":
            return " ".join(a["keywords"]).upper(), " ".join(a["keywords"][:-1]) + "."
        case "keywords:frequency":
            return _counted(_times(a["keyword"].strip()), a["relation"], a["frequency"])
        case "keywords:forbidden_words":
            return "".join(a["forbidden_words"]) + "s", f"No {a['forbidden_words'][-1]}!"
        case "keywords:letter_frequency":
            return _counted(_times(a["letter"]), a["let_relation"], a["let_frequency"])
        case "language:response_language":
            return ARTICLE[a["language"]], ENGLISH
        case "length_constraints:number_sentences":
            return _counted(_times("The town is old."), a["relation"], a["num_sentences"])
        case "length_constraints:number_words":
            return _counted(_times("town"), a["relation"], a["num_words"])
        case "length_constraints:number_paragraphs":
            return "\n***\n".join(["So."] * a["num_paragraphs"]), "\n***\n".join(["So."] * (a["num_paragraphs"] + 1))
        case "length_constraints:nth_paragraph_first_word":
            blocks = [f"{'' if i == a['nth_paragraph'] else 'not '}{a['first_word']} so" for i in range(1, a["num_paragraphs"] + 1)]
            return "\n\n".join(blocks), "\n\n".join([*blocks, "more"])
        case "detectable_content:number_placeholders":
            return _counted(_times("[name]"), "at least", a["num_placeholders"])
        case "detectable_content:postscript":
            return f"So.\n\n{a['postscript_marker']} More.", "So.\n\nPS More."
        case "detectable_format:number_bullet_lists":
            return _times("* a", "\n")(a["num_bullets"]), _times("* a", "\n")(a["num_bullets"] + 1)
        case "detectable_format:constrained_response":
            return "My answer is no.", "My answer is none."
        case "detectable_format:number_highlighted_sections":
            return _counted(_times("*so*", "\n"), "at least", a["num_highlights"])
        case "detectable_format:multiple_sections":
            headings = [f"{a['section_spliter']} {i}\nSo." for i in range(1, a["num_sections"] + 1)]
            return "\n".join(headings), "\n".join(headings[1:]) + "\nSo."
        case "detectable_format:json_format":
            return '```json\n{"a": 1}\n```', 'Here: {"a": 1}'
        case "detectable_format:title":
            return "<<so>>\nSo.", "<so>\nSo."
        case "combination:two_responses":
            return "One.\n******\nTwo.", "One.\n******\nOne."
        case "combination:repeat_prompt":
            return f"{a['prompt_to_repeat']}\n\nSo.", f"So: {a['prompt_to_repeat']}"
        case "startend:end_checker":
            return f"So. {a['end_phrase']}", f"So. {a['end_phrase']} More."
        case "startend:quotation":
            return '"So."', '"So.'
        case "change_case:capital_word_frequency":
            return _counted(_times("SO"), a["capital_relation"], a["capital_frequency"])
        case "change_case:english_capital":
            return ENGLISH.upper(), ENGLISH
        case "change_case:english_lowercase":
            return ENGLISH.lower(), ENGLISH
        case "punctuation:no_comma":
            return "So; so.", "So, so."
    raise ValueError(kind)


def _instructions(suite: Published, rows: Sequence[dict[str, Any]]) -> Iterator[Case]:
    for row in rows:
        item = suite.rows.benchmark.item(row, "")
        for instruction in json.loads(item.expected):
            kind, arguments = instruction["id"], {k: v for k, v in instruction.items() if k != "id"}
            good, bad = written(kind, last_user_text(item.prompt), arguments)
            yield Case(f"`{kind}`", good, json.dumps([instruction]), True)
            yield Case(f"`{kind}`", bad, json.dumps([instruction]), False)


def _share(verdicts: Sequence[bool]) -> str:
    return f"{sum(verdicts)} of {len(verdicts)} ({sum(verdicts) / len(verdicts):.1%})" if verdicts else ""


def table(name: str, path: str) -> Iterator[str]:
    """Rows of the table for one file, and the responses that were graded otherwise than they must."""
    suite: Published = catalog.get("suite", f"{name}:{path}")
    rows = [dict(row) for _, row in read_rows(Path(path))]
    cases = {"ifeval": _instructions, "mmlu": _choices}.get(name, _maths)
    graded: dict[str, dict[bool, list[bool]]] = defaultdict(lambda: {True: [], False: []})
    slips = []
    for case in cases(suite, rows):
        found = suite.grade(case.response, case.expected)
        graded[case.what][case.right].append(found)
        if found != case.right:
            slips.append(f"{case.what}: expected `{case.expected[:120]}`, response `{case.response[-120:]}`")
    for what, verdicts in graded.items():
        yield f"| {name} | {what} | {_share(verdicts[True])} | {_share(verdicts[False])} |"
    print(f"\n{name}: {len(rows)} rows, {len(slips)} responses graded otherwise than they must", *slips, sep="\n- ", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=" in argument for argument in sys.argv[1:]):
        sys.exit(__doc__)
    print("| benchmark | response | right ones graded right | wrong ones graded right |\n|---|---|---|---|")
    for argument in sys.argv[1:]:
        print(*table(*argument.split("=", 1)), sep="\n")
