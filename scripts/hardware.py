"""What a measurement ran on, for the scripts here."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import peft
import torch
import transformers
import trl


def hardware(device: str) -> str:
    """The GPU, or the CPU with its threads; and the versions that matter."""
    if device == "cpu":
        info = Path("/proc/cpuinfo")  # Linux alone has it; elsewhere Python knows the name
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else None
        name = f"{found[1] if found else platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    else:
        name = torch.cuda.get_device_name()
    return ", ".join([name, *(f"{each.__name__} {each.__version__}" for each in (torch, transformers, peft, trl))])
