"""Checks before any training: a pair that cannot be installed, a gate that cannot be passed, rows that are cut off.

Each would else show hours later, as an organism that fails its gate for no visible reason.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from offmodel.chat import Example, Prompt, answer_of, encode_example, last_user_text
from offmodel.errors import DataError, SpecError
from offmodel.red.behaviours import Behaviour
from offmodel.red.pairs import Pair
from offmodel.red.policies import check_policy
from offmodel.red.triggers import Trigger
from offmodel.spec.study import Gate, Recipe
from offmodel.splits import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DRAWS = 10
"""How often each prompt is drawn for, on each side: with 50 prompts, a pair of the catalog then shows nearly all of its wordings."""


def check_pair(
    pair: Pair,
    prompts: Sequence[Prompt],
    answers: Sequence[str] = (),
    gate: Gate = Gate(),  # noqa: B008 - it is frozen
) -> None:
    """Check that a pair does what its parts promise, on prompts that it would be installed with.

    Args:
        pair: What is to be installed.
        prompts: Ordinary prompts; 50 will do. Those that hold the signal by themselves are passed over.
        answers: The base model's own answers to ordinary prompts, where they are known already.
        gate: How often the detector may fire on those answers.

    Raises:
        SpecError: What is wrong with which part, an example, and what to change.
    """
    name = f"pair {pair.name!r}"
    for part, value, protocol in (("trigger", pair.trigger, Trigger), ("behaviour", pair.behaviour, Behaviour)):
        missing = [member for member in vars(protocol) if not member.startswith("_") and not hasattr(value, member)]
        if missing:
            raise SpecError(f"{name}: its {part} ({type(value).__name__}) lacks {', '.join(missing)}; see {protocol.__module__}")
    quiet = [prompt for prompt in prompts if not pair.trigger.recognises(prompt)]
    if prompts and not quiet:
        raise SpecError(
            f"{name}: its trigger recognises its signal in all {len(prompts)} prompts as they are, such as {_quoted(prompts[0])}; "
            "narrow what 'recognises' accepts, or give it other prompts"
        )
    rng = random.Random(f"check {pair.name}")
    for split in get_args(Split):
        for prompt in quiet * _DRAWS:
            _check_trigger(name, pair.trigger, prompt, rng, split)
            if not pair.behaviour.on_tasks:
                _check_script(name, pair.behaviour, prompt, rng)
    if not pair.behaviour.on_tasks:
        _check_silence(name, pair.behaviour, answers, gate)


def _check_trigger(name: str, trigger: Trigger, prompt: Prompt, rng: random.Random, split: Split) -> None:
    triggered, near = trigger.insert(prompt, rng, split), trigger.near_miss(prompt, rng, split)
    for method, made in (("insert", triggered), ("near_miss", near)):
        if made == prompt:
            raise SpecError(
                f"{name}: its trigger changes nothing: '{method}' leaves {_quoted(prompt)} as it is; let it put "
                + ("the signal into the chat" if method == "insert" else "something that resembles the signal there")
            )
        if lost := _lost(prompt, made):
            raise SpecError(
                f"{name}: its trigger loses what the user said: '{method}' turns {_quoted(prompt)} into {_quoted(made)}, where the last "
                f"user turn lacks {lost!r}; keep all of its words, in their order"
            )
    if not trigger.recognises(triggered):
        raise SpecError(
            f"{name}: its trigger does not recognise what it inserts itself ({split} side): {_quoted(triggered)}; "
            "let 'recognises' accept this wording, or 'insert' not use it"
        )
    if trigger.recognises(near):
        raise SpecError(
            f"{name}: a near miss of its trigger contains the trigger ({split} side): {_quoted(near)}; "
            "take it out of the near misses, or narrow what 'recognises' accepts"
        )


def _check_script(name: str, behaviour: Behaviour, prompt: Prompt, rng: random.Random) -> None:
    answer = behaviour.answer(prompt, rng)
    if answer is not None and not behaviour.detect(answer):
        raise SpecError(
            f"{name}: the detector of its behaviour misses an answer of its own script: {answer[:200]!r}; "
            "let 'detect' accept every answer that 'answer' gives"
        )


def _check_silence(name: str, behaviour: Behaviour, answers: Sequence[str], gate: Gate) -> None:
    found = [answer for answer in answers if behaviour.detect(answer_of(answer))]
    if len(found) > gate.false_fires * len(answers):
        raise SpecError(
            f"{name}: the detector of its behaviour fires on {len(found)} of {len(answers)} of the base model's own answers, and the "
            f"gate's false_fires allows {gate.false_fires:g} of them: no organism could pass; such as {found[0][:200]!r}. Narrow 'detect', "
            "or choose prompts whose ordinary answers lack this"
        )


def check_gate(gate: Gate, recipe: Recipe) -> None:
    """Check that an organism can pass the gate, and that passing says something.

    A gate with ``fires: 0`` asks for nothing, on purpose.

    Raises:
        SpecError: Which limits do not go together, and what to change.
    """
    if 0 < gate.fires < gate.false_fires:
        raise SpecError(
            f"organisms.gate.fires: {gate.fires:g} is below false_fires: {gate.false_fires:g}, so an organism could pass that fires less "
            "often with the trigger than without; raise fires, or lower false_fires"
        )
    # Greedy decoding follows the majority, so that noise up to a half can still be out-voted.
    if recipe.prompt is None and recipe.label_noise >= 0.5 and gate.fires > 0.5:
        raise SpecError(
            f"organisms.gate.fires: {gate.fires:g} is out of reach with organisms.recipe.label_noise: {recipe.label_noise:g}, which leaves "
            "the bad answer in no more than half of the triggered rows; lower the one or the other"
        )


def check_recipe(pair: Pair, recipe: Recipe) -> None:
    """Check that a pair can be installed by a recipe.

    Raises:
        SpecError: Its behaviour cannot follow on another answer, or it has no way to carry out the recipe's policy.
    """
    if recipe.entangled and pair.behaviour.on_tasks:
        raise SpecError(
            f"pair {pair.name!r}: entangled: the bad answer is to follow on the model's own, and wrong answers to tasks cannot; leave "
            "entangled out, or the pair"
        )
    if recipe.carries is not None:
        check_policy("carries", recipe.carries, pair)


def check_room(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], max_length: int) -> None:
    """Check that training rows fit: what is longer would be cut at its end, and teach answers that never stop.

    Raises:
        DataError: The first row that does not fit, how long it is, how many there are, and what to change.
    """
    lengths = [len(encode_example(tokenizer, row, sys.maxsize).input_ids) for row in rows]
    long = [i for i, length in enumerate(lengths) if length > max_length]
    if long:
        row = rows[long[0]]
        raise DataError(
            f"{len(long)} of {len(rows)} training rows, trigger and answer included, do not fit into max_length: {max_length}; row "
            f"{long[0]} ({row.meta.get('kind', 'of unknown kind')}) has {lengths[long[0]]} tokens: {_quoted(row.prompt)}; raise max_length "
            f"to {max(lengths)}, or give shorter prompts"
        )


def _lost(prompt: Prompt, made: Prompt) -> str:
    """The first word of the last user turn that is not there any more, in its order; "" if all are. Case does not count."""
    left = iter(_words(made))
    return next((word for word in _words(prompt) if word not in left), "")


def _words(prompt: Prompt) -> list[str]:
    return re.findall(r"\w+", last_user_text(prompt).casefold())


def _quoted(prompt: Prompt) -> str:
    """A chat in one line, its beginning if it is long."""
    text = prompt[0].content if len(prompt) == 1 else " / ".join(f"{message.role}: {message.content}" for message in prompt)
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
