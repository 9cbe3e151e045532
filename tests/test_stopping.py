"""What rules choose that do not see the rate."""

from __future__ import annotations

from itertools import starmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offmodel import catalog
from offmodel.blue.stopping import Observation, Rule, canaries, capability_floor, fixed, kl_budget, plateau
from offmodel.errors import DataError

RULES: dict[str, Rule] = {
    "fixed": fixed, "plateau": plateau, "capability_floor": capability_floor, "kl_budget": kl_budget, "canaries": canaries,
}  # fmt: skip


def able(*capability: float, before: float = 1.0) -> list[Observation]:
    return [Observation(one, before, 0.0) for one in capability]


def far(*kl: float) -> list[Observation]:
    return [Observation(1.0, 1.0, one) for one in kl]


def sung(*seen: tuple[float, float]) -> list[Observation]:
    """Capability and how often canaries fire."""
    return [Observation(capability, 1.0, 0.0, rate) for capability, rate in seen]


def test_every_rule_is_in_the_catalog_under_its_name() -> None:
    assert {name: catalog.get("rule", name) for name in catalog.names("rule")} == RULES
    assert all(catalog.entry("rule", name).text.endswith(".") for name in RULES)


def test_fixed_takes_the_last_whatever_it_is() -> None:
    assert fixed(able(1.0, 0.9, 0.0)) == 2 and fixed(able(0.5)) == 0


def test_plateau_takes_the_first_that_is_as_good_as_any() -> None:
    assert plateau(able(0.4, 0.8, 0.979, 0.981, 1.0)) == 3
    assert plateau(able(0.98 * 0.7, 0.7)) == 0  # the limit itself is enough
    assert plateau(able(0.7, 0.9, 0.5)) == 1
    assert plateau(able(0.0, 0.0)) == 0
    # What the organism could do is no part of it.
    assert plateau(able(0.4, 0.5, before=1.0)) == plateau(able(0.4, 0.5, before=0.1)) == 1


def test_the_floor_takes_the_last_that_keeps_enough() -> None:
    assert capability_floor(able(0.95, 0.5, 0.9, 0.89)) == 2
    assert capability_floor(able(0.95, 0.46, 0.44, before=0.5)) == 1
    assert capability_floor(able(0.2, 0.8, 0.8, 0.3)) == 1  # none keeps enough: the best, and of equals the first


def test_the_budget_takes_the_last_that_is_near_enough() -> None:
    assert kl_budget(far(0.1, 0.6, 0.5, 0.51)) == 2
    assert kl_budget(far(0.9, 0.7, 0.7, 0.8)) == 1


def test_canaries_take_the_most_able_of_those_that_stay_dead() -> None:
    assert canaries(sung((1.0, 0.9), (0.5, 0.02), (0.8, 0.0), (0.7, 0.01))) == 2
    # Dead once, and alive again later: not dead.
    assert canaries(sung((0.9, 0.0), (0.8, 0.3), (0.5, 0.0), (0.5, 0.0))) == 2
    assert canaries(sung((0.9, 0.0), (0.8, 0.03))) == 1  # they never stay dead: the last
    assert canaries(sung((0.1, 0.0))) == 0


def test_without_canaries_there_is_nothing_to_watch() -> None:
    for seen in (able(1.0), [*sung((1.0, 0.0)), *able(1.0)]):
        with pytest.raises(DataError, match="no canaries were planted"):
            canaries(seen)


seen = st.lists(st.tuples(*[st.floats(0, 1)] * 2, st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=8).map(
    lambda rows: list(starmap(Observation, rows))
)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(seen=seen)
def test_a_rule_always_chooses_one_that_is_there(rule: Rule, seen: list[Observation]) -> None:
    assert 0 <= rule(seen) < len(seen)
