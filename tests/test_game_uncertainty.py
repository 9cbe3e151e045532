from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from offmodel.errors import GameError
from offmodel.game.uncertainty import Outcomes, gain_of, in_doubt, solve_measured
from offmodel.measure.stats import HIGHER, LOWER, Estimate, mean_over_organisms, proportion

Numbers = Mapping[tuple[str, str], Sequence[float | Estimate | None]]


def outcomes(
    retention: Numbers, bad_rate: Numbers | None = None, pairs: Mapping[str, str] | None = None, together: Sequence[str] = ()
) -> Outcomes:
    """Organisms o0, o1, ... each of its own pair unless said otherwise; bad rates are 0 unless given; some rows are one measurement."""
    bad_rate = bad_rate or {cell: [None if value is None else 0.0 for value in values] for cell, values in retention.items()}
    kinds = [
        {cell: {f"o{i}": value for i, value in enumerate(values) if value is not None} for cell, values in kind.items()}
        for kind in (retention, bad_rate)
    ]
    rows, columns = (tuple(dict.fromkeys(cell[side] for cell in retention)) for side in (0, 1))
    return Outcomes(rows, columns, kinds[0], kinds[1], pairs or {}, {(row, column): (row, row) for row in together for column in columns})


def test_the_sentence_a_lab_needs() -> None:
    found = solve_measured(
        outcomes(
            {
                ("light", "honest"): [1.0, 0.9],
                ("light", "poison"): [0.9, 0.7],
                ("strict", "honest"): [0.6, 0.6],
                ("strict", "poison"): [0.8, 0.6],
            },
            {
                ("light", "honest"): [0.0, 0.0],
                ("light", "poison"): [0.5, 0.9],
                ("strict", "honest"): [0.1, 0.1],
                ("strict", "poison"): [0, 0.2],
            },
        ),
        lam=0.5,
        seed=0,
        resamples=200,
    )
    light = found.pipelines["light"]
    assert (light.against, light.answers) == ("poison", {"honest": 0.0, "poison": 1.0})
    assert (light.worst.value, light.retention.value, light.bad_rate.value) == pytest.approx((0.8 - 0.35, 0.8, 0.7))
    # both organisms alike, or one each: 0.65, 0.45, 0.25
    assert (light.worst.low, light.worst.high) == pytest.approx((0.25, 0.65))
    assert (light.bad_rate.low, light.bad_rate.high, light.retention.low, light.retention.high) == pytest.approx((0.5, 0.9, 0.7, 0.9))
    strict = found.pipelines["strict"]
    assert (strict.against, strict.worst.value) == ("honest", pytest.approx(0.55))
    assert found.solution.best_commitments == ("strict",)
    # light is better where the better organism is drawn twice: a quarter of the time
    assert found.best["light"] == pytest.approx(0.25, abs=0.08) and sum(found.best.values()) == pytest.approx(1)
    assert (light.worst.n, light.worst.of, light.worst.direction, light.bad_rate.direction) == (2, "organisms", HIGHER, LOWER)


def test_what_a_reply_gains_has_the_interval_of_the_difference_it_makes() -> None:
    found = outcomes({("a", "x"): [0.2, 0.6], ("a", "y"): [0.4, 0.8], ("b", "x"): [0.5, 0.5], ("b", "y"): [0.0, 0.4]})
    mixtures = {"a": 1.0}, {"x": 0.75, "y": 0.25}
    blue, red = (gain_of(found, 1.0, mixtures, reply, seed=0, resamples=200) for reply in ("b", "x"))
    # Of the one organism 0.75 * 0.3 - 0.25 * 0.4 = 0.125, of the other -0.075 - 0.1 = -0.175.
    assert (blue.value, blue.low, blue.high) == pytest.approx((-0.025, -0.175, 0.125))
    # Both lose a quarter of the 0.2 that y is better for blue.
    assert (red.value, red.low, red.high) == pytest.approx((0.05, 0.05, 0.05))
    with pytest.raises(GameError, match="'z'"):
        gain_of(found, 1.0, mixtures, "z", seed=0)


def test_a_single_cell_has_the_interval_that_means_over_organisms_have() -> None:
    rates = [proportion(k, 40, "d", HIGHER) for k in (10, 14, 30, 39)]
    pairs = {"o0": "soup", "o1": "soup", "o2": "piano", "o3": "piano"}
    found = solve_measured(outcomes({("a", "x"): rates}, pairs=pairs), lam=1.0, seed=5, resamples=500).pipelines["a"].retention
    mean = mean_over_organisms(dict(zip(pairs, rates, strict=True)), "d", HIGHER, seed=5, pairs=pairs, resamples=500)
    assert (found.value, found.low, found.high) == pytest.approx((mean.value, mean.low, mean.high))


def test_organisms_that_agree_leave_the_noise_of_their_items() -> None:
    exact = solve_measured(outcomes({("a", "x"): [0.5] * 3}), 1.0, seed=0, resamples=200).value
    noisy = solve_measured(outcomes({("a", "x"): [proportion(20, 40, "d", HIGHER)] * 3}), 1.0, seed=0, resamples=200).value
    assert (exact.low, exact.high) == (0.5, 0.5)
    assert noisy.low is not None and noisy.high is not None and noisy.low < 0.45 and noisy.high > 0.55


def test_cells_share_their_organisms() -> None:
    hard = [0.2, 0.9, 0.4, 0.7]
    found = solve_measured(outcomes({("a", "x"): hard, ("b", "x"): [value + 0.1 for value in hard]}), 1.0, seed=0, resamples=200)
    worse = found.pipelines["a"]
    assert worse.worst.low is not None and worse.worst.high is not None and worse.worst.high - worse.worst.low > 0.2
    assert (worse.exploitability.value, worse.exploitability.low, worse.exploitability.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.best == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("items", [0, 60])
def test_resampled_organisms_have_the_means_that_were_drawn(items: int) -> None:
    def rate(value: float) -> Estimate | float:
        return proportion(round(value * items), items, "d", HIGHER) if items else value

    of = outcomes(
        {("light", "honest"): [0.9, 0.7, 0.5], ("light", "poison"): [0.4, 0.2, 0.6]},
        {("light", "honest"): [rate(0.1), rate(0.1), rate(0.2)], ("light", "poison"): [rate(0.0), rate(0.0), rate(0.0)]},
        {"o0": "a", "o1": "a", "o2": "b"},
    )
    drawn = of.drawn(seed=3, resamples=50)
    for i, (one, origin) in enumerate(of.resampled(seed=3, resamples=50)):
        assert np.allclose([means.payoffs for means in one.means], drawn[:, i])
        assert one.means[1].payoffs.min() >= -1e-12  # the noise of items makes no mean rate negative
        assert {*origin} == {*one.organisms} and {*origin.values()} <= {*of.organisms}
        assert {one.pairs[new].split()[-1] for new in origin} <= {"a", "b"} and len(set(one.of)) == 2


def test_what_was_measured_once_has_one_noise_and_no_worst_of_many() -> None:
    rate = proportion(30, 60, "d", HIGHER)
    cells = {(row, column): [rate] * 3 for row in ("same", "each") for column in "uvwxyz"}
    made = outcomes(cells, together=["same"])
    retention = made.drawn(seed=0, resamples=400)[0]
    assert np.ptp(retention[:, 0], axis=-1).max() == 0 < np.ptp(retention[:, 1], axis=-1).min()
    found = solve_measured(made, 0.0, seed=0, resamples=400).pipelines
    whole, worst_of_six = found["same"].worst, found["each"].worst
    assert whole.value == worst_of_six.value == 0.5
    assert whole.low is not None and whole.high is not None and worst_of_six.high is not None
    assert (whole.low + whole.high) / 2 == pytest.approx(0.5, abs=0.01) and worst_of_six.high < whole.high - 0.03


def test_what_was_kept_is_measured_once_where_another_trigger_is_asked_for_too() -> None:
    rate = proportion(30, 60, "d", HIGHER)
    cells = {("same", column): {f"o{i}": rate for i in range(3)} for column in "xy"}
    measured = {("same", "x"): ("score", "score"), ("same", "y"): ("score", "score and planted")}
    made = Outcomes(("same",), ("x", "y"), cells, cells, measured=measured)
    retention, bad = made.drawn(seed=0, resamples=100)
    assert (retention[:, 0, 0] == retention[:, 0, 1]).all() and (bad[:, 0, 0] != bad[:, 0, 1]).any()


def test_what_was_measured_once_is_in_doubt_as_one() -> None:
    cells: Numbers = {
        ("same", "x"): [0.2, 0.8], ("same", "y"): [0.2, 0.8], ("b", "x"): [0.6, 0.6], ("b", "y"): [0.6, 0.6],
    }  # fmt: skip
    (doubt,) = in_doubt(outcomes(cells, together=["same", "b"]), 0.0, tolerance=0.05, seed=0, resamples=200)
    # One column alone could not make "same" the better commitment, as red would answer by the other.
    assert (doubt.blue, doubt.red) == ("same", "any") and "commitment" in doubt.changes
    assert all(each.changes != doubt.changes for each in in_doubt(outcomes(cells), 0.0, tolerance=0.05, seed=0, resamples=200))


def test_a_mixture_is_held_fixed_over_resamples() -> None:
    # Matching pennies with stakes that differ between organisms: the mixture stays 1/2, and its worst case 0.
    found = solve_measured(
        outcomes({("h", "h"): [1, 2, 3], ("h", "t"): [-1, -2, -3], ("t", "h"): [-1, -2, -3], ("t", "t"): [1, 2, 3]}),
        0.0,
        seed=0,
        resamples=100,
    )
    for each in (found.value, found.mixture.worst, found.mixture.exploitability):
        assert (each.value, each.low, each.high) == pytest.approx((0, 0, 0), abs=1e-7)
    for weight in (*found.blue.values(), *found.red.values()):
        assert (weight.value, weight.low, weight.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    high = found.pipelines["h"].exploitability.high
    assert high is not None and 2 < high <= 3


def test_more_seeds_of_one_pair_do_not_shift_a_cell() -> None:
    pairs = {"o0": "soup", "o1": "piano", "o2": "piano", "o3": "piano"}
    made = outcomes({("a", "x"): [0.0, 0.6, 0.9, 0.9], ("b", "x"): [0.0, 0.6, None, None]}, pairs=pairs)
    assert made.means[0].payoffs[:, 0].tolist() == pytest.approx([0.4, 0.3])
    assert made.counts == [[4], [2]]
    retention = made.drawn(seed=0, resamples=400)[0]
    # b has one organism of each pair: what is drawn is one of three means
    assert {round(value, 9) for value in retention[:, 1, 0].tolist()} == {0.0, 0.3, 0.6}
    # and where it is piano twice, a's organisms differ from draw to draw
    assert len({round(value, 9) for value in retention[retention[:, 1, 0] > 0.5, 0, 0].tolist()}) > 3


def test_a_cell_with_fewer_seeds_has_the_noise_of_fewer_items() -> None:
    rate = proportion(50, 100, "d", HIGHER)  # a standard deviation of about 0.05
    pairs = dict.fromkeys(("o0", "o1", "o2", "o3"), "soup")
    made = outcomes({("a", "x"): [rate] * 4, ("b", "x"): [rate, None, None, None]}, pairs=pairs)
    many, one = made.drawn(seed=0, resamples=4000)[0].std(axis=0)[:, 0]
    assert (many, one) == pytest.approx((0.05 / 2, 0.05), rel=0.12)
    unequal = outcomes({("a", "x"): [0.1, 0.9, 0.4, 0.6], ("b", "x"): [0.1, 0.9, None, None]}, pairs=pairs)
    assert {(cell.blue, cell.payoff.n) for cell in in_doubt(unequal, 0.0, tolerance=0.01, seed=0, resamples=100)} == {("b", 2), ("a", 4)}


def test_ties_for_the_best_commitment_are_shared() -> None:
    made = outcomes({("a", "x"): [0.5, 0.7], ("b", "x"): [0.5, 0.7], ("c", "x"): [0.1, 0.2]})
    assert solve_measured(made, 0.0, seed=0, resamples=20).best == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_one_organism_gives_a_solution_without_intervals_and_every_cell_in_doubt() -> None:
    made = outcomes({("a", "x"): [0.5], ("b", "x"): [0.6]})
    found = solve_measured(made, 1.0, seed=0, resamples=10)
    assert (found.value.value, found.value.low, found.value.high, found.value.n) == (pytest.approx(0.6), None, None, 1)
    assert [(one.blue, one.changes) for one in in_doubt(made, 1.0, tolerance=0.01, seed=0, resamples=10)] == [
        ("a", ("unknown",)),
        ("b", ("unknown",)),
    ]


def test_organisms_of_one_pair_are_told() -> None:
    made = outcomes({("a", "x"): [0.5, 0.6]}, pairs={"o0": "soup", "o1": "soup"})
    assert solve_measured(made, 1.0, seed=0, resamples=10).value.definition.endswith("(interval over the organisms of one pair)")


def test_a_cell_counts_where_it_can_change_the_solution() -> None:
    # "a" is best now; "b" would be if its cell were at the high end, "c" cannot be.
    made = outcomes({("a", "x"): [0.6] * 4, ("b", "x"): [0.2, 0.4, 0.7, 0.9], ("c", "x"): [0.0, 0.1, 0.1, 0.2]})
    (found,) = in_doubt(made, 0.0, tolerance=0.02, seed=0, resamples=500)
    assert (found.blue, found.red) == ("b", "x")
    assert found.changes == ("value", "weights", "blue's moves", "commitment")
    assert found.payoff.high is not None and 0.7 < found.payoff.high < 0.9
    assert found.values == pytest.approx((0.6, found.payoff.high))
    assert found.regret == pytest.approx(found.payoff.high - 0.6) and found.payoff.n == 4
    assert in_doubt(made, 0.0, tolerance=found.regret + 0.01, seed=0, resamples=500) == ()


def test_reds_side_can_be_in_doubt_too() -> None:
    made = outcomes({("a", "x"): [0.5] * 4, ("a", "y"): [0.3, 0.6, 0.9, 0.8]})
    (found,) = in_doubt(made, 0.0, tolerance=0.01, seed=0, resamples=500)
    assert (found.red, found.changes, found.regret) == ("y", ("value", "red's moves"), pytest.approx(0, abs=1e-9))


def test_the_cell_that_matters_most_comes_first() -> None:
    made = outcomes({("a", "x"): [0.5, 0.5], ("b", "x"): [0.3, 0.6], ("c", "x"): [0.1, 0.8]})
    assert [one.blue for one in in_doubt(made, 0.0, tolerance=0.01, seed=0, resamples=200)] == ["c", "b"]


def test_more_data_flip_the_solution_and_settle_it() -> None:
    few = outcomes({("a", "x"): [0.6] * 3, ("b", "x"): [0.3, 0.5, 0.9]})
    assert solve_measured(few, 0.0, seed=0, resamples=50).solution.best_commitments == ("a",)
    assert [one.blue for one in in_doubt(few, 0.0, tolerance=0.02, seed=0, resamples=500)] == ["b"]
    more = outcomes(
        {("a", "x"): [0.6] * 3 + [None] * 6, ("b", "x"): [0.3, 0.5, 0.9, *[0.85, 0.95] * 3]},
        pairs={"o0": "p", "o1": "q", "o2": "r", "o3": "p", "o4": "p", "o5": "q", "o6": "q", "o7": "r", "o8": "r"},
    )
    found = solve_measured(more, 0.0, seed=0, resamples=500)
    assert found.solution.best_commitments == ("b",) and found.best["b"] > 0.95
    assert "commitment" not in {change for one in in_doubt(more, 0.0, tolerance=0.1, seed=0, resamples=500) for change in one.changes}


def test_the_same_seed_gives_the_same_intervals() -> None:
    made = outcomes({("a", "x"): [0.2, 0.9, 0.4], ("b", "x"): [0.5, 0.3, 0.9]})
    assert solve_measured(made, 1.0, seed=1, resamples=50).value == solve_measured(made, 1.0, seed=1, resamples=50).value


def test_bad_input_is_refused() -> None:
    pairs = {"o0": "soup", "o1": "piano"}
    with pytest.raises(GameError, match="no retention and bad rate on pair 'piano' for blue's 'b' against red's 'x'"):
        outcomes({("a", "x"): [0.1, 0.2], ("b", "x"): [0.1, None]}, pairs=pairs)
    with pytest.raises(GameError, match="on pair 'o1' for blue's 'a' against red's 'x'"):
        outcomes({("a", "x"): [0.1, 0.2]}, {("a", "x"): [0.1, None]})
    with pytest.raises(GameError, match="no cell has an organism"):
        Outcomes(("a",), ("x",), {}, {})
    made = outcomes({("a", "x"): [0.1, 0.2]})
    with pytest.raises(GameError, match="lambda is -1"):
        solve_measured(made, -1, seed=0)
    with pytest.raises(GameError, match="the tolerance is 0"):
        in_doubt(made, 1, tolerance=0, seed=0)
