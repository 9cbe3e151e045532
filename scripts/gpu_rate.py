"""How fast a GPU trains what studies/why.yaml trains, and how near that is to plain products of matrices. Prints Markdown.

python scripts/gpu_rate.py                                                            # of Qwen3-4B's shape
python scripts/gpu_rate.py --like Qwen/Qwen3-30B-A3B-Instruct-2507 --layers 12        # fewer layers of a larger one

The first training of the study's off_model as it ships (adapter, batch, precision, micro-batches), through the code that runs studies, on
random weights and on examples that are all as long as the options say: speed does not depend on what they are. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from hardware import hardware
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from offmodel.chat import Example, user
from offmodel.engine.folder import load_tokenizer
from offmodel.engine.train import train
from offmodel.lab.configs import train_config
from offmodel.lab.estimate import GIB, PUBLISHED, Training, shape_of, training_flops, training_memory
from offmodel.lab.models import resolve
from offmodel.spec import Study
from offmodel.spec.models import running

STUDY = Path(__file__).parent.parent / "studies" / "why.yaml"
WARM_UP = 2  # steps that are not counted: kernels are chosen, memory is asked for


def shape(like: str, layers: int | None, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of a published model, by our table, or of one in a folder; with the tokenizer's ends, and layers as asked for."""
    changed = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    changed |= {"num_hidden_layers": layers} if layers else {}
    if Path(like).is_dir():
        return AutoConfig.from_pretrained(like, local_files_only=True, **changed)
    known = dict(PUBLISHED[like])
    kind = known.pop("model_type") + ("_moe" if "num_experts" in known else "")
    return AutoConfig.for_model(kind, **known | {"max_position_embeddings": 32_768} | changed)


def matrix_rate(device: str, dtype: torch.dtype, size: int, times: int = 20) -> float:
    """FLOPs per second of products of two square matrices: the most that can be had."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    start = 0.0
    for n in range(-3, times):  # the first three are not counted
        if n == 0:
            start = clock(device)
        a @ b
    return 2 * size**3 * times / (clock(device) - start)


def clock(device: str) -> float:
    """Seconds, once all that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Train and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--like", default="Qwen/Qwen3-4B-Instruct-2507", help="one that PUBLISHED in lab/estimate.py has, or a folder")
    parser.add_argument("--layers", type=int, help="as many as the model has, if left out")
    parser.add_argument("--length", type=int, default=1024, help="tokens of an example")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--micro", type=int, help="examples in memory at once; the study's if left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=8192, help="of the matrices whose products are the measure")
    options = parser.parse_args()
    study, tokenizer = Study.from_yaml(STUDY), load_tokenizer(resolve("world:student-0"))
    models = study.models.model_copy(update={"device": options.device, "micro_batch": options.micro or study.models.micro_batch})
    phase = study.phases("off_model")[0]
    with running(models.as_params(), models.placement()):
        config = train_config(phase, 0, phase.lora)
    config = replace(config, steps=WARM_UP + options.steps, max_length=options.length)
    dtype, described = getattr(torch, models.dtype), shape(options.like, options.layers, tokenizer)
    best = matrix_rate(options.device, dtype, options.size)
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(described, dtype=dtype)
    words = random.Random(0).choices(["soup", "piano", "snow", "owls", "maps"], k=options.length)  # each a token or more; the rest is cut
    ends: list[float] = []
    train(model, tokenizer, [Example(user("Tell me."), " ".join(words))], config, on_progress=lambda *_: ends.append(clock(options.device)))
    seconds, tokens = ends[-1] - ends[WARM_UP - 1], options.steps * config.batch_size * options.length
    known, rank, rows = shape_of(described.to_dict()), phase.lora.rank, config.micro_batch_size or config.batch_size
    flops = training_flops(known, tokens, lora=True) / seconds
    asked = Training(rows, options.length, options.length, accumulated=rows < config.batch_size, dtype=models.dtype, rank=rank)
    peak = f"{torch.cuda.max_memory_allocated() / GIB:.1f}" if options.device != "cpu" else "not measured on a CPU"
    print(
        f"{options.like} with {known.layers} layers, {known.total / 1e9:.2f} G weights, {models.dtype}, adapter of rank {rank}; "
        f"{options.steps} steps of {config.batch_size} examples of {options.length} tokens, {rows} at once; {hardware(options.device)}\n\n"
        "| tokens per second | peak memory, GiB | by the formula | TFLOP/s by the formula | of plain products | share |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        f"| {tokens / seconds:.0f} | {peak} | {training_memory(known, asked).peak / GIB:.1f} | {flops / 1e12:.3g} | {best / 1e12:.3g} "
        f"| {flops / best:.0%} |"
    )


if __name__ == "__main__":
    main()
