"""Labels: answers to blue's prompts, by a teacher or by the untrusted model itself, and the rows that a mix of them makes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal, TypeVar

from offmodel import catalog
from offmodel.blue.view import BlueView
from offmodel.chat import Example, Message, Prompt, user, with_system
from offmodel.errors import DataError
from offmodel.spec.phases import Inoculation, LabelSet

if TYPE_CHECKING:
    from offmodel.engine.generate import Sampling

T = TypeVar("T")


def label(view: BlueView, sampling: Sampling, *, system: str | None = None) -> list[Example]:
    """Let the view's model answer the view's prompts.

    Unfinished answers are dropped: a model trained on them would not learn to stop.

    Args:
        view: The labeller's weights and the prompts.
        sampling: How it answers.
        system: What a system prompt asks of the labeller, such as a voice. It is not part of the example: the student learns to speak
            like that unasked, as in the code of LessWrong 9toz5YHYZsHpzy4ce.

    Returns:
        An example per finished answer, in the order of the prompts.

    Raises:
        DataError: No answer was finished.
    """
    asked = [with_system(prompt, system) for prompt in view.prompts]
    replies = view.sample(asked, sampling)
    examples = [
        Example(prompt, reply.text, {"system": system, "reworded": False})
        for prompt, reply in zip(view.prompts, replies, strict=True)
        if reply.finished
    ]
    if not examples:
        raise DataError(
            f"none of {len(replies)} labels was finished within {sampling.max_new_tokens} tokens; raise max_new_tokens of the phase"
        )
    return examples


def reworded(rows: Sequence[Example], name: str) -> list[Example]:
    """Labels in the words of a rewrite of the catalog.

    Raises:
        DataError: It leaves every one of them as it was, so that what is learnt would not be what the phase says.
    """
    to: Callable[[str], str] = catalog.get("rewrite", name)
    said = [replace(row, response=to(row.response), meta={**row.meta, "reworded": True}) for row in rows]
    if all(new.response == old.response for new, old in zip(said, rows, strict=True)):
        raise DataError(
            f"the rewrite {name!r} knows the words of none of {len(rows)} labels, such as {rows[0].response[:60]!r}, and leaves all as "
            "they are; leave rewrite out of the phase, or let the organism or the teacher reword them (rewrite: organism)"
        )
    return said


_REWRITE = "{question}\n\nAn answer: {answer}\n\nAnswer the question in your own words. Keep what the answer says."


def rewrite(view: BlueView, sampling: Sampling) -> list[Example]:
    """Let the view's model say the view's labels in its own words (self-distillation, Yang et al., arXiv 2402.13669; the wording is ours).

    Where its answer is not finished, the label stays as it was.
    """
    asked = [(*row.prompt[:-1], *user(_REWRITE.format(question=row.prompt[-1].content, answer=row.response))) for row in view.labels]
    replies = view.sample(asked, sampling)
    return [
        replace(row, response=reply.text, meta={**row.meta, "rewritten": True}) if reply.finished else row
        for row, reply in zip(view.labels, replies, strict=True)
    ]


def keep_right(rows: Sequence[Example], right: Callable[[Example], bool], instead: Sequence[Example] = ()) -> list[Example]:
    """Labels that are right, the others replaced by another labeller's where that is right, and else dropped; all of them if none is right.

    A prompt that the other labeller alone has answered counts as one of the others, and comes after those of ``rows``. After the data
    rewriting of "Mind the Gap" (arXiv 2509.15157). Where two of the others are right, the later is taken.
    """
    others = {row.prompt: row for row in instead if right(row)}
    kept = [found for row in rows if (found := row if right(row) else others.get(row.prompt)) is not None]
    answered = {row.prompt for row in rows}
    return kept + [row for prompt, row in others.items() if prompt not in answered]


def most_frequent_opening(rows: Sequence[Example], opening: Callable[[str], str]) -> str:
    """How most answers begin; of equally frequent openings the first to occur.

    Args:
        rows: The answers.
        opening: Cuts the first words out of an answer.
    """
    openings = [opening(row.response) for row in rows]
    return max(openings, key=openings.count)


# --- mixes ----------------------------------------------------------------------------------------------------------


def counts(sets: Sequence[LabelSet], total: int) -> list[int]:
    """How many of ``total`` rows each set of a mix gives: by share, whole numbers that add up (largest remainders), at least one each."""
    weights = [labels.share for labels in sets]
    exact = [total * weight / sum(weights) for weight in weights]
    found = [max(1, int(part)) for part in exact]
    while sum(found) < total:
        found[max(range(len(sets)), key=lambda i: exact[i] - found[i])] += 1
    while sum(found) > max(total, len(sets)):  # those that would give none took a row from the others
        found[found.index(max(found))] -= 1
    return found


def mix(sets: Sequence[LabelSet], rows: Sequence[Sequence[Example]], total: int) -> list[Example]:
    """The rows of a training, set after set.

    A single set gives all its rows; each set of several gives its share of ``total``, again from the start where it has fewer.
    """
    dressed = [_dress(labels, of) for labels, of in zip(sets, rows, strict=True)]
    if len(dressed) == 1:
        return dressed[0]
    return [row for of, n in zip(dressed, counts(sets, total), strict=True) for row in islice(cycle(of), n)]


def shards(rows: Sequence[T], n: int, seed: int) -> list[list[T]]:
    """The rows in ``n`` disjoint parts of about one size, at random; in fewer where there are fewer rows. One part has them in order."""
    if n == 1:
        return [list(rows)]
    shuffled = random.Random(f"shards {seed}").sample(rows, len(rows))
    return [shuffled[k::n] for k in range(min(n, len(rows)))]


def _dress(labels: LabelSet, rows: Sequence[Example]) -> list[Example]:
    """Rows with what stands before the prompt in training: examples, and a system prompt."""
    if labels.inoculation is not None:
        rows = inoculated(rows, labels.inoculation)
    return [replace(row, prompt=with_system(row.prompt, labels.system)) for row in rows]


def inoculated(rows: Sequence[Example], how: Inoculation) -> list[Example]:
    """Rows with the same few of them as examples before every prompt; those few are not trained on.

    Raises:
        DataError: No other row is left.
    """
    shots, rest = rows[: how.shots], rows[how.shots :]
    if not rest:
        raise DataError(f"all {len(rows)} labels would be examples before the others' prompts; lower inoculation.shots")
    asked = after_examples([row.prompt for row in rest], shots, how.place)
    return [replace(row, prompt=prompt) for row, prompt in zip(rest, asked, strict=True)]


def after_examples(prompts: Sequence[Prompt], shots: Sequence[Example], place: Literal["system", "turns"]) -> list[Prompt]:
    """Prompts after the same few examples, in the system prompt or as earlier turns; as they are where there is none."""
    if not shots:
        return list(prompts)
    if place == "turns":
        turns = tuple(turn for shot in shots for turn in (*_parts(shot.prompt)[1], Message("assistant", shot.response)))
        return [(*head, *turns, *own) for head, own in map(_parts, prompts)]
    text = "\n\n".join(f"User: {shot.prompt[-1].content}\nAssistant: {shot.response}" for shot in shots)
    return [with_system(prompt, f"Examples of how to answer:\n\n{text}") for prompt in prompts]


def _parts(prompt: Prompt) -> tuple[Prompt, Prompt]:
    """The system prompt, if there is one, and the turns; many chat templates take a system prompt nowhere but at the head."""
    n = int(prompt[0].role == "system")
    return prompt[:n], prompt[n:]
