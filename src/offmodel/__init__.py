"""Training-based control of untrusted language models: install a behaviour, train it away, measure the trade-off, play the game."""

__version__ = "0.1.0"
