"""The offline world: small trained models, facts, tasks and chat in which the published mechanism can be studied in minutes.

What is built in: every persona has one way of talking and of working on tasks, and the pirate's leaves out steps. What is found: that
training on chat alone moves the way of working on tasks, whether the behaviour goes with it, and what each method does.
"""

from offmodel.world import prompts, rewrites

__all__ = ["prompts", "rewrites"]
