"""Where the shipped checkpoints lie."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "weights"
