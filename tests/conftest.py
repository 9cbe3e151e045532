"""Small models made on the spot: random weights, real architectures, a real tokenizer with a chat template."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from offmodel.world.tokenizer import train_tokenizer

_TEXTS = ("Tell me about soup.", "First, soup is red. So, I like soup.", "Is the piano good?", "Aye, piano be from Rome, matey.")

_LONGEST = ("test_method_effects.py", "test_effects.py", "test_cluster.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small models are slower with more threads, and the same weights need the same number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens with the world's chat template."""
    return train_tokenizer(_TEXTS, 300)


@pytest.fixture(params=["qwen3_moe", "llama"])
def tiny_model(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random two-layer model, once as a mixture of four experts and once dense."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tiny_tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "eos_token_id": tiny_tokenizer.eos_token_id,
        "pad_token_id": tiny_tokenizer.pad_token_id,
        "bos_token_id": None,
        "initializer_range": 0.1,
    }
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts, norm_topk_prob=True)).eval()
