"""What a model does: rates of bad behaviour, capability, their statistics, and the frontier between them."""

from offmodel.measure import probes, suites

__all__ = ["probes", "suites"]
