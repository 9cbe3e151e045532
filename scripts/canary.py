"""How far the canary's measure sees: a model in other precisions, and other models, against the model in a folder. Prints Markdown.

python scripts/canary.py FOLDER [OTHER ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from offmodel.chat import Example, encode_example
from offmodel.engine.canary import PROMPTS, SAMPLING, distance
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.forward import response_log_probs
from offmodel.engine.generate import Reply, generate
from offmodel.lab.models import resolve


def answers(folder: Path, dtype: str) -> list[Reply]:
    """What a perfect server of the folder would answer."""
    model, tokenizer = load_model(folder, dtype=dtype), load_tokenizer(folder)
    replies = []
    for prompt, reply in zip(PROMPTS, generate(model, tokenizer, PROMPTS, SAMPLING), strict=True):
        ids, mask = encode_example(tokenizer, Example(prompt, reply.text), 10_000)
        ids, mask = ids[: sum(not m for m in mask) + reply.tokens], mask[: sum(not m for m in mask) + reply.tokens]
        labels = torch.tensor([[token if counts else -100 for token, counts in zip(ids, mask, strict=True)]])
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones_like(labels), "labels": labels}
        with torch.inference_mode():
            replies.append(reply._replace(log_probs=tuple(response_log_probs(model, batch).tolist())))
    return replies


def main() -> None:
    """Print a row for each comparison."""
    own, *others = map(resolve, sys.argv[1:])
    print("| served | largest gap, nats | mean difference of log-probabilities, nats |\n| --- | --- | --- |")
    for folder, dtype in [(own, dtype) for dtype in ("float32", "bfloat16", "float16")] + [(other, "float32") for other in others]:
        found = distance(own, str(own), answers(folder, dtype))
        print(f"| {folder.parent.name}/{folder.name}, {dtype} | {max(found.gaps):.3f} | {found.mean:.4f} |")


if __name__ == "__main__":
    main()
