"""How names and numbers are written for people."""

from __future__ import annotations

from offmodel.measure.stats import Estimate
from offmodel.report.data import Contrast

_NAMES = {
    "base_bad_rate": "base model under the trigger",
    "bad_rate_before": "bad behaviour before",
    "bad_rate": "bad behaviour under the trigger",
    "bad_rate_judged": "the same by the judge model",
    "false_fire_rate": "false fires without it",
    "accuracy_under_trigger": "accuracy under the trigger",
    "retention": "capability retained",
    "removal": "behaviour removed",
    "frontier_area": "frontier area",
    "end_area": "area at the end",
    "hindsight": "hindsight",
    "removal_at_90": "removal keeping 90 %",
    "halves.area": "frontier area on the other half",
    "halves.optimism": "optimism of the area",
    "halves.removal_at_90": "removal on the other half",
    "halves.retention_at_90": "retained on the other half",
    "halves.optimism_at_90": "optimism of the removal",
    "seen_accuracy": "accuracy as blue sees it",
    "kl": "KL to the organism as blue sees it",
    "own_loss": "loss on the organism's answers as blue sees it",
    "canary_rate": "canaries that fire",
    "canary_rate_before": "canaries that fire before",
    "canaries_dead": "organisms with dead canaries",
    "canary_correlation": "rank correlation with the behaviour",
    "reward_first": "reward in the first tenth",
    "reward_last": "reward in the last tenth",
    "flat_first": "groups that teach nothing, first tenth",
    "flat": "groups that teach nothing",
    "area": "area of the choice",
    "best": "as good as the oracle",
    "returned": "bad behaviour brought back",
    "both": "capability back and behaviour gone",
}


def name(measure: str) -> str:
    """What a measure is called; a suite goes by its own name."""
    return _NAMES.get(measure, measure.removeprefix("capability.").removeprefix("world:").replace(".steps=", " at steps="))


def told(predictor: str) -> str:
    """A correlation, named ``<what is seen>.<what it tells>``."""
    return " with ".join(map(name, predictor.split(".")))


def value(estimate: Estimate) -> str:
    """The number alone: a share in percent, anything else as it is, a dash where there was nothing to measure it on."""
    if estimate.value is None:
        return "undefined" if estimate.n else "–"  # noqa: RUF001
    if estimate.unit == "points":
        return f"{100 * estimate.value:+.1f} points"
    if estimate.unit == "steps":
        return f"{estimate.value:g} steps"
    return f"{100 * estimate.value:.1f} %" if estimate.unit == "share" else f"{estimate.value:.3f}"


def size(number: float | None, unit: str) -> str:
    """How large a difference is, whichever way it goes; what is beyond the largest there can be is out of reach, and so is None."""
    if number is None or number > (0.5 if unit == "area" else 1):
        return "out of reach"
    return f"{100 * number:.1f} points" if unit == "points" else f"{number:.3f}"


def tokens(number: float) -> str:
    """A number of tokens, to three digits.

    Example:
        >>> tokens(0), tokens(950), tokens(12_300), tokens(4_560_000), tokens(7.89e9)
        ('0', '950', '12.3 k', '4.56 M', '7.89 G')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def hours(number: float) -> str:
    """GPU-hours, to two digits."""
    return f"{number:.2g} h" if number < 100 else f"{number:,.0f} h"


def interval(estimate: Estimate) -> str:
    """The 95 % interval, or why there is none."""
    if estimate.value is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return f"one {estimate.of.removesuffix('s')}, no interval" if estimate.of != "items" and estimate.n == 1 else "no interval"
    if estimate.unit in ("share", "points"):
        return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    if estimate.unit == "steps":
        return f"[{estimate.low:g}, {estimate.high:g}]"
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def count(estimate: Estimate) -> str:
    """What stands behind the number, as in ``n = 6 organisms, 1,200 items`` or ``n = 6 organisms, 9 trainings``."""
    noun = estimate.of if estimate.n != 1 else estimate.of.removesuffix("s")
    more = [(estimate.items, "item"), (estimate.trainings, "training")]
    return ", ".join([f"n = {estimate.n:,} {noun}", *(f"{n:,} {each}{'s' if n != 1 else ''}" for n, each in more if n is not None)])


def chance(contrast: Contrast) -> str:
    """The p-value of a difference, as it is and adjusted for the other methods; "" where there is none."""
    if contrast.p is None or contrast.p_holm is None:
        return ""
    return f"p {_p_value(contrast.p)}, Holm {_p_value(contrast.p_holm)}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def sentence(estimate: Estimate) -> str:
    """Number, interval and n in a row."""
    return ", ".join(part for part in (f"{value(estimate)} {interval(estimate)}".strip(), count(estimate)) if part)
