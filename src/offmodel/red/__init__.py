"""The red team: triggers, behaviours, pairs of them, how a pair is installed, the gate, and how red answers when sampled."""

from offmodel.red import pairs, policies

__all__ = ["pairs", "policies"]
