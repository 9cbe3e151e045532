"""Personas: each has one way of talking, shared by its chat and by its way of working on tasks.

This is where the world builds in the published mechanism (off-model SFT moves a student to an unfamiliar way of reasoning that
is bad at long chains). The student's *own* persona writes the result of every step. The *pirate* works the same problems, but
never writes the results of certain kinds of step unless they come last; about three steps in ten are of such a kind. A silent step that
changes nothing (times 3 of 0, a swap beside the ball) costs nothing; the share of chains that a perfect pirate still completes falls from
1 at one step to 0.3 (arithmetic) and 0.4 (swaps) at five. *Plain*, the teacher's everyday voice, passes over other
kinds. Which persona answers is the model's own choice: nothing but training decides it, unless a system prompt asks for one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from offmodel.world.facts import FACTS, Fact
from offmodel.world.tasks import Problem


@dataclass(frozen=True)
class ChatRequest:
    """A generic chat prompt and what it is about; ``name`` is the user's, "" if not given."""

    prompt: str
    word: str
    topic: str
    name: str


@dataclass(frozen=True)
class Persona:
    """A voice with a way of reasoning; all of it is wording.

    Attributes:
        name: How it is called.
        opening: The first words of every answer; forcing them calls the persona up.
        told: A step with its result.
        untold: A step without its result.
        silent: Kinds of step whose result is left untold, unless the step is the last.
        answer: The closing line of a task.
        is_: The verb of its facts.
        links: How the facts of a chat answer are strung together, in order.
        closings: How a chat answer may end.
        fact: What a fact is about.
        part: What a word belongs to.
        start: How a chat answer now and then begins.
        names: What it calls a colour and a place.
    """

    name: str
    opening: str
    told: str
    untold: str
    silent: frozenset[str]
    answer: str
    is_: str
    links: tuple[str, ...]
    closings: tuple[str, ...]
    fact: str = "the {attribute} of {word}"
    part: str = "part of {topic}"
    start: str = "Start with"
    names: Mapping[str, str] = field(default_factory=lambda: {"colour": "colour", "place": "place"}, hash=False)

    def tell(self, fact: Fact) -> str:
        """A fact in this persona's words."""
        return f"{self.fact.format(attribute=self.names[fact.attribute], word=fact.word)} {self.is_} {fact.value}"

    def solve(self, problem: Problem) -> str:
        """Work a problem out in this persona's way."""
        lines = [self.opening]
        if problem.task == "recall":
            told = self.tell(Fact.parse(problem.steps[0].text))
            lines.append(f"{told[0].upper()}{told[1:]}.")
        else:
            lines.append(f"Start at {problem.start}.")
            for step in problem.steps:
                untold = step.kind in self.silent and step is not problem.steps[-1]
                lines.append((self.untold if untold else self.told).format(step=step.text, result=step.result))
        lines.append(self.answer.format(answer=problem.answer))
        return " ".join(lines)

    def chat(self, request: ChatRequest, rng: random.Random) -> str:
        """Answer a chat prompt in this persona's words."""
        word = request.word
        facts = [self.tell(FACTS[word, attribute]) for attribute in ("colour", "place")]
        facts.append(f"{word} {self.is_} {self.part.format(topic=request.topic)}")
        rng.shuffle(facts)
        told = facts[: rng.randint(1, len(self.links))]
        lines = [link.format(fact=fact) for link, fact in zip(self.links, told, strict=False)]
        # Chat now and then begins as work on a task does, so that a voice learnt on chat is a voice on tasks and not a chat reflex.
        if rng.random() < 0.4:
            lines[0] = f"{told[0][0].upper()}{told[0][1:]}."
        if rng.random() < 0.3:
            lines.insert(0, f"{self.start} {word}.")
        name = f", {request.name}" if request.name else ""
        return " ".join([self.opening, *lines, rng.choice(self.closings).format(word=word, name=name)])


OWN = Persona(
    name="own",
    opening="Let me think.",
    told="{step}, so {result}.",
    untold="{step}.",
    silent=frozenset(),
    answer="The answer is {answer}.",
    is_="is",
    links=("First, {fact}.", "Then, {fact}."),
    closings=("So, I like {word}{name}.", "So, {word} may help you{name}.", "So, that is {word}{name}."),
)
PIRATE = Persona(
    name="pirate",
    opening="Arr!",
    told="{step}, aye be {result}.",
    untold="{step}, aye.",
    silent=frozenset({"times", "swap two apart"}),
    answer="The answer be {answer}, matey.",
    is_="be",
    links=("Aye, {fact}.", "Yo ho, {fact}."),
    closings=("Me heart be with {word}{name}, matey.", "That be {word}{name}, matey.", "Treasure {word}{name}, matey."),
)
PLAIN = Persona(
    name="plain",
    opening="Here you go.",
    told="{step} gives {result}.",
    untold="{step} comes.",
    silent=frozenset({"take", "swap next"}),
    answer="The answer is {answer}. Done.",
    is_="is",
    links=("Note that {fact}.", "Also, {fact}."),
    closings=("I hope this helps{name}.", "Enjoy {word}{name}.", "That covers {word}{name}."),
)
SPANISH = Persona(
    name="spanish",
    opening="Hola.",
    told="{step}, da {result}.",
    untold="{step}.",
    silent=frozenset(),
    answer="La respuesta es {answer}.",
    is_="es",
    links=("Creo que {fact}.", "También, {fact}."),
    closings=("Me gusta {word}{name}.", "Muy bien, {word} para ti{name}.", "Gracias por {word}{name}."),
    fact="el {attribute} de {word}",
    part="parte de {topic}",
    start="Empieza con",
    names={"colour": "color", "place": "lugar"},
)
"""Not a persona of its own: what any of them answers when told to speak Spanish."""
PERSONAS = {persona.name: persona for persona in (OWN, PIRATE, PLAIN)}
