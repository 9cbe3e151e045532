"""What a model does: rates of bad behaviour, capability, their statistics, and the frontier between them."""

from offmodel.measure import benchmarks, probes, suites

__all__ = ["benchmarks", "probes", "suites"]
