"""Tiny random checkpoints of the families that the literature trains: their architectures, and chat templates in the form of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_TEXTS = ("Tell me about soup.", "Soup is red.", "Be brief.", "<think>\n\n</think>\n\n", "system\nuser\nassistant\nmodel\n", "\n\n")

# With a thinking mode: earlier answers lose their thoughts, the last one always has some, be they empty.
_QWEN3 = """
{%- if messages[0]['role'] == 'system' -%}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' -}}{%- endif -%}
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m['role'] == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}{{- '<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n' -}}
{%- elif m['role'] == 'assistant' -%}
{%- set content = m['content'] -%}{%- set thoughts = '' -%}
{%- if '</think>' in content -%}
{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last -%}{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
{%- else -%}{{- content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
# Begins with its own token and the day's date, and trims what is said.
_LLAMA3 = """
{{- bos_token -}}
{%- if not date_string is defined -%}
{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}
{%- else -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}
{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""
# Has no system role, and says so.
_GEMMA = """
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
# Names its roles in plain text, and has the family's only tokenizer in the manner of SentencePiece.
_ZEPHYR = """
{%- for m in messages -%}{{- '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


class _Family(NamedTuple):
    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    template: str
    special: list[str]
    bos: str | None
    eos: str
    pad: str | None
    more: dict[str, object]


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16, "norm_topk_prob": True}
_OF_QWEN3 = (_QWEN3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "qwen3": _Family(Qwen3MoeForCausalLM, Qwen3MoeConfig, *_OF_QWEN3, _EXPERTS),
    "qwen3_dense": _Family(Qwen3ForCausalLM, Qwen3Config, *_OF_QWEN3, {"head_dim": 16, "tie_word_embeddings": True}),
    "llama3": _Family(
        LlamaForCausalLM, LlamaConfig, _LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>", "<|eot_id|>", None, {},
    ),
    "gemma": _Family(
        GemmaForCausalLM, GemmaConfig, _GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<pad>",
        {"head_dim": 16},
    ),
    "zephyr": _Family(LlamaForCausalLM, LlamaConfig, _ZEPHYR, ["<unk>", "<s>", "</s>"], "<s>", "</s>", "</s>", {}),
}  # fmt: skip


def make_tokenizer(family: str, texts: Iterable[str] = _TEXTS) -> PreTrainedTokenizerFast:
    """The family's control tokens and template over a BPE of 300 tokens; as it stands in a folder, padding on the right.

    It is byte-level, or marks words as SentencePiece does: with a space before the first, too, which decoding takes away.
    """
    f = FAMILIES[family]
    bpe = Tokenizer(models.BPE())
    if family == "zephyr":
        # There a line's end is a byte of its own.
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
        bpe.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [*map(chr, range(32, 127)), "\n", "▁"]
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=f.special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=f.bos, eos_token=f.eos, pad_token=f.pad, chat_template=f.template.strip(),
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_model(family: str, tokenizer: PreTrainedTokenizerFast | None = None, **more: object) -> PreTrainedModel:
    """A random model of two layers for the tokenizer, or the family's own; ``more`` goes into its config."""
    f, tokenizer = FAMILIES[family], tokenizer or make_tokenizer(family)
    end = {"gemma": "<end_of_turn>"}.get(family, f.eos)
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 1024, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(end), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.1,
    }  # fmt: skip
    return f.model(f.config(**shape | f.more | more)).eval()


def make_folder(family: str, folder: Path, **more: object) -> Path:
    """Both, in Hugging Face layout."""
    make_model(family, **more).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder
