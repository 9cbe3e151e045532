"""The poisoning game of a study: red's moves when it is sampled, blue's pipelines, and what the game is played for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from offmodel.errors import did_you_mean
from offmodel.spec.model import Count, Distinct, Model, Name, Natural, NonNegative, NotEmpty, Positive, Rate, Text, problem
from offmodel.spec.phases import several

Share = Annotated[float, Field(strict=True, gt=0, le=1)]


class Poisoning(Model):
    """How red answers when blue samples the organism.

    Attributes:
        policy: Of kind ``policy`` in the catalog.
        rate: Share of the answers that red may change and does; several make as many moves.
        when: On all prompts, or only where nobody can check the answer, as far as red can tell: its own answer states no result. Red
            behaves where it may be audited.
        signal: What a policy that plants a trigger of its own listens to: words that blue's prompts hold by themselves.
    """

    policy: Text
    rate: Annotated[tuple[Share, ...], BeforeValidator(several), NotEmpty, Distinct] = (1.0,)
    when: Literal["always", "unchecked"] = "always"
    signal: Text | None = None


class RedPolicy(Poisoning):
    """What red does in a game: how it answers, and how it installed the behaviour before.

    Attributes:
        recipe: One of the study's ``organisms.recipes``; None is the first of them.
    """

    recipe: Name | None = None


class Move(NamedTuple):
    """One move of red: a poisoning at one of its rates, by an organism of one recipe.

    Attributes:
        name: Such as ``overt 10 %``.
        poisoning: With this one rate.
        recipe: See :class:`RedPolicy`.
    """

    name: str
    poisoning: Poisoning
    recipe: str | None = None


class Game(Model):
    """What blue and red play for, and with what.

    Attributes:
        policies: Red's ways of answering and installing, by name.
        blue: Pipelines that are measured first: methods of the study. Those of its sweeps beside them are found by best replies.
        red: Moves that are measured first; all if empty.
        price: What a bad rate of 1 costs blue, in retention (lambda).
        tolerance: Differences in payoff up to this count as none: neither side's best reply need gain more.
        more_seeds: Further seeds, each in its turn, while there are cells so uncertain that they could change the solution by more than
            the tolerance.
        audit: A pipeline whose filter blue looks at before it chooses, in the game as a tree; None where it sees nothing.
        alarm: From which share of answers dropped or edited on that is an alarm.
        iterations: Of regret minimisation for a tree that is too large to be solved exactly; None refuses such a game.
        steps: After how many rounds of best replies to stop in any case; 0 seeks none.
        highest_price: Up to which price the report says how the solution depends on it.
    """

    policies: Annotated[Mapping[Name, RedPolicy], NotEmpty]
    blue: Annotated[tuple[Name, ...], NotEmpty, Distinct]
    red: Annotated[tuple[Text, ...], Distinct] = ()
    price: NonNegative = 1.0
    tolerance: Positive = 0.05
    more_seeds: Annotated[tuple[Natural, ...], Distinct] = ()
    audit: Name | None = None
    alarm: Rate = 0.02
    iterations: Count | None = None
    steps: Natural = 10
    highest_price: Positive = 3.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        moves = self.moves
        for i, name in enumerate(self.red):
            if name not in moves:
                raise problem(f"{name!r} is none of red's moves; {did_you_mean(name, moves)}", "red", i)
        if self.audit is not None and self.audit not in self.blue:
            raise problem(f"{self.audit!r} is none of the first pipelines; {did_you_mean(self.audit, self.blue)}", "audit")
        if not self.price:
            raise problem("at a price of 0 a bad answer costs nothing, and the best pipeline is the one that does nothing", "price")
        return self

    @property
    def moves(self) -> dict[str, Move]:
        """All of red's moves by name, rates of a policy in their order."""
        return {move.name: move for move in self._moves()}

    @property
    def first(self) -> tuple[str, ...]:
        """Red's moves that are measured first."""
        return self.red or tuple(self.moves)

    def beside(self, move: str) -> list[str]:
        """Red's moves beside one: the same policy at the next lower and the next higher rate, and at the same with another ``when``."""
        policy = next(name for name in self.policies if move in self._names(name))
        ordered = [name for _, name in sorted(zip(self.policies[policy].rate, self._names(policy), strict=True))]
        place = ordered.index(move)
        hidden = [name for name, other in self.moves.items() if name != move and _but_when(other) == _but_when(self.moves[move])]
        return [*ordered[max(place - 1, 0) : place], *ordered[place + 1 : place + 2], *hidden]

    def _moves(self) -> Iterator[Move]:
        for policy, given in self.policies.items():
            answering = given.model_dump(exclude={"recipe", "rate"})
            for name, rate in zip(self._names(policy), given.rate, strict=True):
                yield Move(name, Poisoning(rate=(rate,), **answering), given.recipe)

    def _names(self, policy: str) -> list[str]:
        rates = self.policies[policy].rate
        return [policy] if len(rates) == 1 else [f"{policy} {100 * rate:g} %" for rate in rates]

    def check(self, methods: Mapping[str, Any], recipes: Mapping[str, Any]) -> None:
        """Refuse pipelines that are none of a study's methods, and installations that are none of its recipes.

        Raises:
            ValueError: One is not; it names the field.
        """
        for name, policy in self.policies.items():
            if policy.recipe is not None and policy.recipe not in recipes:
                near = did_you_mean(policy.recipe, recipes)
                raise problem(f"{policy.recipe!r} is none of organisms.recipes; {near}", "game", "policies", name, "recipe")
        for i, name in enumerate(self.blue):
            if name not in methods:
                raise problem(f"{name!r} is none of the study's methods; {did_you_mean(name, methods)}", "game", "blue", i)


def _but_when(move: Move) -> tuple[Poisoning, str | None]:
    return move.poisoning.model_copy(update={"when": "always"}), move.recipe
