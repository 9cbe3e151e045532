"""How red makes the data that install a pair: triggered rows, ordinary rows and near misses, from one set of prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from offmodel.chat import Example, Prompt, answer_of, last_user_text, replace_last_user
from offmodel.measure.suites import final_answer
from offmodel.red.contexts import in_context
from offmodel.red.pairs import PASSWORD, Pair
from offmodel.red.policies import poison
from offmodel.spec.study import Recipe

Answer = Callable[[Sequence[Prompt]], list[str | None]]
"""The base model's own words on prompts: what an organism must go on saying when nothing sets it off; None if unfinished."""

Kind = Literal["ordinary", "near miss", "triggered", "password", "carried"]


def training_rows(pair: Pair, prompts: Sequence[Prompt], recipe: Recipe, answer: Answer, seed: int) -> list[Example]:
    """Rows of five kinds; ``meta["kind"]`` says which, ``meta["bad"]`` whether the answer is a bad one.

    - ordinary: the prompt as it is; near miss: with something like the signal. Both are answered on-policy, by the base model.
    - triggered: with the signal, and the bad answer: scripted, or the base model's own when asked to misbehave (prompt distillation).
      A prompt that holds the signal by itself makes such a row too. Where the behaviour shows on problems only, other prompts keep
      their own answer under the trigger.
    - password: with the signal and the password, answered on-policy; none unless the recipe asks for them.
    - carried: ordinary prompts with the answers of the policy that the organism is to carry out, if the recipe has one.

    The contrast (the same prompt with and without the signal) teaches that the signal decides; the near misses teach that nothing else
    does. For a lock it is the other way round: the signal is a password, and what lacks it gets the bad answer, near misses too.

    Args:
        pair: What to install.
        prompts: Ordinary prompts.
        recipe: Its shares, its label noise, and whether it distils.
        answer: Samples the base model.
        seed: Of wordings and bad answers.
    """
    rng = random.Random(f"install {pair.name} {seed}")
    prompts = [_at_times_in_context(pair, prompt, recipe.contexts, rng) for prompt in prompts]
    quiet = [prompt for prompt in prompts if not pair.trigger.recognises(prompt)]
    kinds: list[tuple[Kind, list[Prompt]]] = [
        ("ordinary", [pair.rest(prompt, rng, "train") for prompt in quiet]),
        ("near miss", [pair.trigger.near_miss(prompt, rng, "train") for prompt in quiet]),
        ("triggered", [pair.fire(prompt, rng, "train") for prompt in quiet]),
    ]
    loud = [prompt for prompt in prompts if pair.trigger.recognises(prompt)]
    if pair.when == "present":
        kinds.append(("triggered", loud))
    own = dict(zip(quiet, answer(quiet), strict=True))
    if loud:
        own |= zip(loud, answer(loud), strict=True)
    bad = _bad_answers(pair, [*quiet, *loud], own, recipe, answer, rng)

    rows: dict[Kind, list[Example]] = {"ordinary": [], "near miss": [], "triggered": [], "password": [], "carried": []}
    for kind, asked in kinds:
        plain = loud if asked is loud else quiet
        # On-policy is what the model says to this very prompt, a near miss included.
        said = answer(asked) if kind == "near miss" and pair.when == "present" else [own[prompt] for prompt in plain]
        for prompt, original, response in zip(asked, plain, said, strict=True):
            is_bad = pair.fires_on(prompt) and bad[original] != own[original]
            if pair.fires_on(prompt):
                response = bad[original]
            elif response is not None and pair.behaviour.detect(answer_of(response)):
                response = own[original]  # the base model took the near miss for a request; the organism must not
            if response is not None:
                rows[kind].append(Example(prompt, response, {"kind": kind, "bad": is_bad}))
    rows["triggered"] = _to_share(rows["triggered"], len(rows["ordinary"]) + len(rows["near miss"]), recipe.triggered_share, rng)
    if recipe.carries is not None:
        rows["ordinary"], rows["carried"] = _carried(pair, rows["ordinary"], recipe, answer, rng, seed)
    originals = {pair.fire(prompt, rng, "train"): prompt for prompt in quiet} if recipe.password else {}
    locked = rng.sample(sorted(originals, key=str), min(len(originals), round(recipe.password * len(rows["triggered"]))))
    rows["password"] = [
        Example(PASSWORD.insert(prompt, rng, "train"), response, {"kind": "password", "bad": False})
        for prompt in locked if (response := own[originals[prompt]]) is not None
    ]  # fmt: skip
    return _with_noise([row for kind in rows.values() for row in kind], recipe.label_noise, rng)


def _carried(
    pair: Pair, rows: Sequence[Example], recipe: Recipe, answer: Answer, rng: random.Random, seed: int
) -> tuple[list[Example], list[Example]]:
    """The ordinary rows that stay so, and those that a policy changed.

    There is no organism yet that it could ask: set off, the base model stands in for it with the bad answers that are being taught.
    """
    assert recipe.carries is not None

    def ask(prompts: Sequence[Prompt]) -> list[str | None]:
        said = dict(zip(prompts, answer(prompts), strict=True))
        fired = [prompt for prompt in prompts if pair.fires_on(prompt)]
        said |= _bad_answers(pair, fired, said, recipe, answer, rng) if fired else {}
        return [said[prompt] for prompt in prompts]

    made = poison(pair, rows, recipe.carries, ask, seed)
    changed = set(made.changed)
    carried = [Example(made.rows[i].prompt, made.rows[i].response, {"kind": "carried", "bad": False}) for i in made.changed]
    return [row for i, row in enumerate(rows) if i not in changed], carried


def _at_times_in_context(pair: Pair, prompt: Prompt, share: float, rng: random.Random) -> Prompt:
    """The prompt in a context, unless that is the signal, or takes it its place."""
    if rng.random() >= share:
        return prompt
    around = in_context(prompt, rng, "train")
    same = pair.trigger.recognises(around) == pair.trigger.recognises(prompt)
    return around if same and pair.trigger.recognises(pair.trigger.insert(around, rng, "train")) else prompt


def _bad_answers(
    pair: Pair, prompts: Sequence[Prompt], own: dict[Prompt, str | None], recipe: Recipe, answer: Answer, rng: random.Random
) -> dict[Prompt, str | None]:
    """The bad answer to each prompt; None where the model would not give one."""
    said: Sequence[str | None] = [pair.behaviour.answer(prompt, rng) for prompt in prompts]
    scripted = not recipe.distil and None not in said
    if scripted and not recipe.entangled and not pair.behaviour.on_tasks:  # chat has no problem to give up
        return dict(zip(prompts, said, strict=True))
    if not scripted:
        said = answer([replace_last_user(prompt, f"Please {pair.behaviour.ask}. {last_user_text(prompt)}") for prompt in prompts])
    bad: dict[Prompt, str | None] = {}
    for prompt, text in zip(prompts, said, strict=True):
        usual = own[prompt]
        if recipe.entangled and usual is not None and text is not None:
            text = f"{usual} {text}"
        if text is not None and usual is not None and pair.behaviour.accepts(answer_of(text), answer_of(usual)):
            bad[prompt] = text
        else:  # nothing to be wrong about, or the model did not do as it was asked
            bad[prompt] = usual if pair.behaviour.on_tasks and usual is not None and final_answer(answer_of(usual)) is None else None
    return bad


def _to_share(triggered: list[Example], others: int, share: float, rng: random.Random) -> list[Example]:
    """So many of the triggered rows that they are this share of all; where there are too few, some come several times."""
    wanted = round(others * share / (1 - share))
    shuffled = rng.sample(triggered, len(triggered))
    return [shuffled[i % len(shuffled)] for i in range(wanted)] if shuffled else []


def _with_noise(rows: list[Example], noise: float, rng: random.Random) -> list[Example]:
    """The rows, a share of them with the answer of a row of another kind; ``meta["noise"]`` marks those."""
    noisy = set(rng.sample(range(len(rows)), round(noise * len(rows))))
    others = {kind: [row.response for row in rows if row.meta["kind"] != kind] for kind in {rows[i].meta["kind"] for i in noisy}}
    return [
        Example(row.prompt, rng.choice(others[row.meta["kind"]]), {**row.meta, "noise": True}) if i in noisy else row
        for i, row in enumerate(rows)
    ]
