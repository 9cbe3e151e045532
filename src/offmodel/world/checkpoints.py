"""Where the shipped checkpoints lie."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "weights"
STUDENTS = ("student-0", "student-1")
TEACHER = "teacher"
