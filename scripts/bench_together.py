"""Treatments per hour by adapters that are trained together, one by one in a warm process, and in a process each. Prints Markdown.

python scripts/bench_together.py world:student-0
python scripts/bench_together.py random:1024x16 --device cuda --dtype bfloat16 --rank 64      # a dense model of that width and depth

All have the same model and data, with other learning rates and seeds; the model is loaded as often as the way needs it. The ways take
turns, and what counts is the median.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from hardware import hardware
from transformers import LlamaConfig, LlamaForCausalLM

from offmodel.chat import Example
from offmodel.engine.folder import load_model, load_tokenizer, save_model
from offmodel.engine.lora import LoraSettings
from offmodel.engine.together import Treatment, train_together
from offmodel.engine.train import TrainConfig, train
from offmodel.lab.models import resolve
from offmodel.world.corpus import Mix, example


def rows(k: int) -> list[Example]:
    """What the k-th treatment learns."""
    rng = random.Random(k)
    return [example(Mix(chat=0.5, on_chat={"pirate": 1}, on_tasks={"pirate": 1}), rng) for _ in range(200)]


def config(k: int, options: argparse.Namespace) -> TrainConfig:
    """How: one of four learning rates, and a seed of its own."""
    lora = LoraSettings(rank=options.rank, alpha=2 * options.rank)
    lr = (1e-4, 3e-4, 1e-3, 3e-3)[k % 4]
    return TrainConfig(options.steps, lr, options.batch, micro_batch_size=options.micro, seed=k, lora=lora)


def alone(k: int, options: argparse.Namespace) -> None:
    """One treatment, from loading the model on."""
    model = load_model(options.folder, dtype=options.dtype, device=options.device)
    train(model, load_tokenizer(options.folder), rows(k), config(k, options))


def together(options: argparse.Namespace) -> None:
    """All of them, as many at once as the options say."""
    for first in range(0, options.treatments, options.at_once):
        model = load_model(options.folder, dtype=options.dtype, device=options.device)
        some = [Treatment(rows(k), config(k, options)) for k in range(first, min(first + options.at_once, options.treatments))]
        train_together(model, load_tokenizer(options.folder), some)


def process(k: int) -> None:
    """One treatment in a process of its own."""
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", str(k)], check=True)


def cpu_seconds() -> float:
    """Of this process and those it has waited for; on a machine that others use, they say more than the clock."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def make_random(width: int, depth: int, folder: Path) -> Path:
    """A random dense model with the world's tokenizer."""
    tokenizer = load_tokenizer(resolve("world:student-0"))
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "num_attention_heads": max(1, width // 64)}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends)), tokenizer, folder)
    return folder


def main() -> None:
    """Take turns and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--treatments", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--processes", type=int, default=1, help="treatments in a repeat that get a process each; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        alone(options.only, options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        if options.model.startswith("random:"):
            width, depth = map(int, options.model.removeprefix("random:").split("x"))
            options.folder = make_random(width, depth, Path(temporary) / "model")
        else:
            options.folder = resolve(options.model)
        sys.argv += ["--folder", str(options.folder)]
        ways = {
            "together": lambda: together(options),
            "one by one, warm": lambda: [alone(k, options) for k in range(options.treatments)],
            "a process each": lambda: [process(k) for k in range(options.processes)],
        }
        if not options.processes:
            del ways["a process each"]
        alone(0, options)  # what is loaded once is loaded for both
        counts = {way: options.treatments for way in ways} | {"a process each": options.processes}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        busy: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, work in ways.items():
                start, cpu = time.perf_counter(), cpu_seconds()
                work()
                seconds[way].append((time.perf_counter() - start) / counts[way])
                busy[way].append((cpu_seconds() - cpu) / counts[way])
                print(f"{way}: {seconds[way][-1]:.1f} s, {busy[way][-1]:.2f} CPU seconds per treatment", file=sys.stderr, flush=True)
    print(
        f"{options.model}, {options.dtype}, rank {options.rank}, {options.steps} steps of {options.batch}; "
        f"{options.treatments} treatments, {options.at_once} at once, {options.processes} of them in a process each; "
        f"{options.repeats} repeats in turn; {hardware(options.device)}\n"
    )
    print("| way | treatments per hour, median (range) | times one by one | times a process each | CPU seconds each, median (range) |")
    print("| --- | --- | --- | --- | --- |")
    for way, taken in seconds.items():
        low, middle, high = (3600 / t for t in (max(taken), median(taken), min(taken)))
        least, used, most = min(busy[way]), median(busy[way]), max(busy[way])
        others = [seconds.get(other) for other in ("one by one, warm", "a process each")]
        times = " | ".join("" if other is None else f"{median(other) / median(taken):.2f}" for other in others)
        print(f"| {way} | {middle:.0f} ({low:.0f} to {high:.0f}) | {times} | {used:.2f} ({least:.2f} to {most:.2f}) |")


if __name__ == "__main__":
    main()
