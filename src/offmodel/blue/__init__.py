"""The blue team: methods made of phases, working through a view that cannot hold the trigger."""

from offmodel.blue import methods, operations, stopping

__all__ = ["methods", "operations", "stopping"]
