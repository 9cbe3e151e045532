"""A base model trained again from nothing can do what the shipped one can."""

from __future__ import annotations

from pathlib import Path

import pytest

from offmodel import catalog
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.generate import Sampling, generate
from offmodel.measure.score import Verdict, accuracy, capability_items, judge
from offmodel.measure.stats import Estimate
from offmodel.measure.suites import Suite
from offmodel.world.checkpoints import CHECKPOINTS
from tiny_study import offmodel

SUITES: dict[str, Suite] = {name: catalog.get("suite", name) for name in ("world:arithmetic", "world:swaps", "world:recall")}
N = 200


def measure(folder: Path) -> list[Verdict]:
    """What a model says to the held-out items, N for each number of steps, the same for every model."""
    items = capability_items(dict.fromkeys(SUITES.values(), N), 0, "test")
    replies = generate(load_model(folder), load_tokenizer(folder), [item.prompt for item in items], Sampling(max_new_tokens=96))
    return judge(items, [(reply.text, reply.finished) for reply in replies], SUITES, lambda response: False)


def meet(a: Estimate, b: Estimate) -> bool:
    """Whether the 95 % intervals of two shares have a number in common."""
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    return a.low <= b.high and b.low <= a.high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "student-0"])
def test_a_rebuilt_model_is_as_able_as_the_shipped_one(name: str, tmp_path: Path) -> None:
    done = offmodel("world", "build", name, "--out", tmp_path, "--runs", tmp_path / "runs", "--workers", 1)
    assert done.code == 0, done.err
    rebuilt, shipped = measure(tmp_path / name), measure(CHECKPOINTS / name)
    apart = {}
    for suite in SUITES.values():
        for steps in sorted({verdict.steps for verdict in shipped if verdict.suite == suite.name}):
            now, then = accuracy(rebuilt, suite, steps), accuracy(shipped, suite, steps)
            if not meet(now, then):
                apart[suite.name, steps] = (now.value, then.value)
    assert apart == {}
