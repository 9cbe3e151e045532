"""The red team: triggers, behaviours, pairs of them, how a pair is installed, and the gate that an organism must pass."""

from offmodel.red import pairs

__all__ = ["pairs"]
