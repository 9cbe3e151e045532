"""The blue team: methods made of phases, working through a view that cannot hold the trigger."""

from offmodel.blue import methods, model_filters, operations, stopping, text_filters

__all__ = ["methods", "model_filters", "operations", "stopping", "text_filters"]
