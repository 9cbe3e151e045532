"""What a training or a sampling needs, by formulas: memory, FLOPs, time. All of them are here, and no model is loaded for them.

Written for decoders in the manner of Llama (gated MLP, norms before each block, attention that keeps no scores), dense or as a mixture of
experts. B are examples in memory, S their tokens, T = B S; h the hidden size, L the layers, V the vocabulary, q and k the widths of all
queries and of all keys, f the width of an MLP, E experts of which e are chosen. Sizes are bytes. docs/scale.md says what they were held
against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from offmodel.errors import ModelError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 1 << 30


# --- the size of a model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a model's ``config.json`` says of its size.

    Attributes:
        hidden: h.
        layers: L.
        queries: q, heads times their width.
        keys: k, those of keys (and values).
        width: f of a dense MLP; 0 where no layer has one.
        vocabulary: V.
        tied: Whether the embedding is the head, too.
        normed: Whether queries and keys have norms of their own (Qwen3).
        head: Width of a head.
        experts: E; 0 for a dense model.
        chosen: e.
        expert_width: f of an expert.
        shared_width: f of what all tokens pass beside the experts.
        dense: Layers of a mixture of experts that have a dense MLP instead.
    """

    hidden: int
    layers: int
    queries: int
    keys: int
    width: int
    vocabulary: int
    tied: bool = False
    normed: bool = False
    head: int = 128
    experts: int = 0
    chosen: int = 0
    expert_width: int = 0
    shared_width: int = 0
    dense: int = 0

    @property
    def sparse(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense if self.experts else 0

    @property
    def stack(self) -> int:
        """Weights of one layer's experts: 3 E h f."""
        return 3 * self.experts * self.hidden * self.expert_width

    @property
    def total(self) -> int:
        """Weights: V h, twice where the head is one of its own, and of each layer 2 h (q + k) + 3 h f and the norms; see :attr:`stack`."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self._layers(self.experts)

    @property
    def active(self) -> int:
        """Weights that a token is multiplied with: all but the embedding, and of the experts only those that are chosen."""
        return self.vocabulary * self.hidden + self._layers(self.chosen)

    def _layers(self, experts: int) -> int:
        h = self.hidden
        attention = 2 * h * (self.queries + self.keys) + 2 * h + 2 * self.head * self.normed
        sparse = 3 * h * (experts * self.expert_width + self.shared_width) + h * self.experts
        return h + self.layers * attention + (self.layers - self.sparse) * 3 * h * self.width + self.sparse * sparse

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on all linear layers: rank (in + out) of each, and of stacked experts twice that of each expert.

        PEFT gives a stack of experts, whose two halves of the first matrix are one, twice the rank.
        """
        h, f = self.hidden, self.expert_width
        attention = 2 * (h + self.queries) + 2 * (h + self.keys)
        sparse = self.experts * (2 * (h + 2 * f) + (f + h)) + h + self.experts + 3 * (h + self.shared_width) * (self.shared_width > 0)
        return rank * (self.layers * attention + (self.layers - self.sparse) * 3 * (h + self.width) + self.sparse * sparse)


def shape_of(config: Mapping[str, Any], name: str = "the model") -> Shape:
    """The shape that a ``config.json`` describes.

    Raises:
        ModelError: It lacks what the formulas need, as that of a model which is no decoder with attention does.
    """
    c = {**config, **config.get("text_config", {})}
    kind = str(c.get("model_type", ""))
    try:
        heads, hidden, layers = c["num_attention_heads"], c["hidden_size"], c["num_hidden_layers"]
        head = c.get("head_dim") or hidden // heads
        experts = next((c[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if c.get(key)), 0)
        stacked = experts and c.get("moe_intermediate_size", c["intermediate_size"])
        step, first = c.get("decoder_sparse_step", 1), c.get("first_k_dense_replace", 0)
        dense = len({i for i in range(layers) if i < first or i in c.get("mlp_only_layers", ()) or (i + 1) % step}) if experts else 0
        return Shape(
            hidden=hidden, layers=layers, queries=heads * head, keys=(c.get("num_key_value_heads") or heads) * head,
            width=c["intermediate_size"], vocabulary=c["vocab_size"], tied=bool(c.get("tie_word_embeddings", False)),
            normed=kind.startswith(("qwen3", "gemma3", "olmo2")), head=head, experts=experts,
            chosen=c["num_experts_per_tok"] if experts else 0, expert_width=stacked,
            shared_width=c.get("shared_expert_intermediate_size", 0) or c.get("n_shared_experts", 0) * stacked, dense=dense,
        )  # fmt: skip
    except KeyError as missing:
        raise ModelError(f"{name}: its config.json has no {missing}, so what it needs cannot be told from it") from None


def _qwen3(hidden: int, layers: int, heads: int, keys: int, width: int, tied: bool = False, **experts: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": 128, "intermediate_size": width, "vocab_size": 151_936, "tie_word_embeddings": tied,
        **experts,
    }  # fmt: skip


def _llama3(hidden: int, layers: int, heads: int, width: int, tied: bool = False) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
        "intermediate_size": width, "vocab_size": 128_256, "tie_word_embeddings": tied,
    }  # fmt: skip


_06B = _qwen3(1024, 28, 16, 8, 3072, tied=True)
_4B = _qwen3(2560, 36, 32, 8, 9728, tied=True)
_30B = _qwen3(2048, 48, 32, 4, 6144, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
_235B = _qwen3(4096, 94, 64, 4, 12288, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536)
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-0.6B": _06B,
    "Qwen/Qwen3-4B": _4B,
    "Qwen/Qwen3-4B-Instruct-2507": _4B,
    "Qwen/Qwen3-30B-A3B": _30B,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _30B,
    "Qwen/Qwen3-235B-A22B-Instruct-2507": _235B,
    "meta-llama/Llama-3.2-1B-Instruct": _llama3(2048, 16, 32, 8192, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(4096, 32, 32, 14336),
    "meta-llama/Llama-3.3-70B-Instruct": _llama3(8192, 80, 64, 28672),
}
"""The literature's models, as their ``config.json`` has them, for those who plan before they download. Layers, heads and experts are in the
reports (Qwen3, arXiv 2505.09388, tables 1 and 2; Llama 3, arXiv 2407.21783, table 3). A ``config.json`` that is here goes before."""


# --- memory ---------------------------------------------------------------------------------------------------------

_STATES = {"adamw": 2.0, "muon": 1.0, "adamw_8bit": 0.0, "paged_adamw": 0.0, "paged_adamw_8bit": 0.0}
"""Values of an optimizer's state per trained weight that have its type and stay on the GPU. Muon keeps one, for matrices."""
_STATE_BYTES = {"adamw_8bit": 2.0}
"""Bytes of an optimizer's state per trained weight, whatever the weight's type."""
_TILE = 4096 * 32768
"""Logits that TRL's fused head has in memory at once (trl.kernels.chunked_logprob)."""


@dataclass(frozen=True)
class Training:
    """What of a training decides how much memory it needs.

    Attributes:
        rows: B, examples in memory at once.
        length: S of the longest of them.
        labelled: Of its tokens those with loss.
        accumulated: Whether a step is made of several such batches, so that gradients wait for the last.
        dtype: Of the weights.
        optimizer: See :class:`offmodel.spec.phases.Training`.
        rank: Of a LoRA adapter, which is in float32; 0 where all weights are trained.
        checkpointing: Whether a layer's activations are computed again in the backward pass; on a GPU they are.
        fused: Whether the head never has all logits; on a GPU it has not.
        still: Copies of the weights beside the trained ones: a teacher of the same shape, the original.
        processes: How many share it, one per GPU; ``rows`` are those of one.
    """

    rows: int
    length: int
    labelled: int
    accumulated: bool = False
    dtype: str = "bfloat16"
    optimizer: str = "adamw"
    rank: int = 0
    checkpointing: bool = True
    fused: bool = True
    still: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one GPU, by what holds them; see :func:`training_memory`."""

    weights: float
    gradients: float
    states: float
    activations: float
    again: float
    logits: float
    accumulated: bool

    @property
    def peak(self) -> float:
        """The most there is at once: weights and states always, the logits before the first layer is computed again.

        Gradients grow while activations go, unless they wait for the next batch.
        """
        passing = self.activations + max(self.logits, self.again)
        last = self.gradients + self.again
        return self.weights + self.states + (self.gradients + passing if self.accumulated else max(passing, last))


def layer_activations(shape: Shape, training: Training) -> float:
    """Bytes of one layer that wait for its backward pass, over all T tokens (an average over layers with and without experts).

    Counted off the modules of transformers, value by value. Full weights, float32: per token 6 h (each of two norms keeps its input, the
    normalized input and its output), 2 q + 2 k (queries, keys and values after the rotation, the attention's output), again 2 (q + k) where
    they have norms, and 4 f (gate, its activation, the other half, their product). Of experts it is 4 e f and 2 e h (what each gets, and
    gives), and the scores of the router. In 16 bits a norm keeps its input as float32, another h each, and (q + k) of their own. Under a
    LoRA adapter norms do not keep the normalized input, but in 16 bits each adapted layer keeps its input as float32 by itself; a stack of
    experts keeps its merged weights. Compare Korthikanti et al., arXiv 2205.05198, eq. 1, of GPT's layers with dropout.
    """
    s, t, size = shape, training.rows * training.length, BYTES[training.dtype]
    half, lora = size == 2, training.rank > 0
    inputs = 3 * s.hidden + s.queries  # of the attention's linear layers
    values = (6 + 2 * half - (4 if half else 2) * lora) * s.hidden + 2 * s.queries + 2 * s.keys
    values += s.normed * (s.queries + s.keys) * (1 if lora and not half else 2 if lora or not half else 3)
    dense = (4 - (lora and half)) * s.width
    sparse = 4 * s.chosen * s.expert_width + 2 * s.chosen * s.hidden + 4 * s.shared_width + 5 * s.experts
    per_token = size * (values + ((s.layers - s.sparse) * dense + s.sparse * sparse) / s.layers)
    merged = 0.0
    if lora and half:
        per_token += 4 * (inputs + ((s.layers - s.sparse) * (2 * s.hidden + s.width) + s.sparse * s.hidden) / s.layers)
    if lora and s.experts:
        merged = s.stack * size * s.sparse / s.layers
    return t * per_token + merged


def training_memory(shape: Shape, training: Training) -> Memory:
    """Memory of a training step.

    - weights: those of the model, of an adapter, and of models beside it that are not trained (``still``). Of several processes each has
      its part of these, of gradients and of states, and puts together the embedding, the head, a layer and the next (FSDP2; ZeRO-3 of
      Rajbhandari et al., arXiv 1910.02054).
    - gradients: as large as what is trained.
    - states: two values per trained weight for AdamW, one for Muon, two of one byte in 8 bits; none on the GPU where they are paged out.
    - activations: :func:`layer_activations` of all layers; with gradient checkpointing the input of each, T h values (Chen et al., arXiv
      1604.06174).
    - again: with gradient checkpointing one layer's, computed again, and three tenths as much (measured) for gradients on their way.
    - logits: three times V float32 values for each token with loss (the logits, their softmax, its gradient); a fused head has two tiles
      of them, and its gradient in float32.
    """
    size, t = BYTES[training.dtype], training.rows * training.length
    adapter = shape.adapter(training.rank) if training.rank else 0
    trained, each = (adapter, 4) if training.rank else (shape.total, size)
    layer, again = layer_activations(shape, training), 0.0
    activations = layer * shape.layers
    if training.checkpointing:
        activations, again = size * t * shape.hidden * shape.layers, 1.3 * layer
    labelled = training.rows * training.labelled
    logits = 3 * 4.0 * labelled * shape.vocabulary
    if training.fused:
        head = 0 if training.rank else 4 * shape.vocabulary * shape.hidden
        logits = min(2.0 * _TILE * size, logits) + head + 4 * t * shape.hidden
    ends, part = shape.vocabulary * shape.hidden * (1 if shape.tied else 2), 1 / training.processes
    whole = size * (ends + 2 * (shape.total - ends) / shape.layers) if training.processes > 1 else 0.0
    return Memory(
        weights=part * (size * shape.total * (1 + training.still) + 4 * adapter) + whole,
        gradients=part * each * trained,
        states=part * (_STATES[training.optimizer] * each + _STATE_BYTES.get(training.optimizer, 0)) * trained,
        activations=activations,
        again=again,
        logits=logits,
        accumulated=training.accumulated,
    )


def sampling_memory(shape: Shape, rows: int, length: int, dtype: str) -> float:
    """Bytes while ``rows`` prompts are answered.

    The weights; the cache, 2 k L values per token, of which one layer's is copied as it grows; and the last token's logits, as they are and
    three times in float32 (the sampler's).
    """
    size = BYTES[dtype]
    cache = 2 * shape.keys * rows * length * size
    return size * shape.total + cache * (shape.layers + 1) + rows * shape.vocabulary * (size + 12)


# --- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        memory: Bytes.
        flops: Per second, dense, in 16 bits.
        flops_float32: Per second, in float32 without tensor cores, as torch computes it unless told otherwise.
        bandwidth: Bytes of its memory per second.
    """

    memory: float
    flops: float
    flops_float32: float
    bandwidth: float


GPUS = {
    "A100 80GB": Gpu(80 * GIB, 312e12, 19.5e12, 2.04e12),
    "H100 80GB": Gpu(80 * GIB, 989e12, 67e12, 3.35e12),
    "H200": Gpu(140 * GIB, 989e12, 67e12, 4.8e12),
}
"""The SXM variants, from NVIDIA's data sheets; memory as the driver reports it."""

ROOM = 0.9
"""Share of a GPU's memory that a peak may take: the rest is for the driver, the kernels' scratch and gaps between tensors."""
MFU_DENSE, MFU_EXPERTS = 0.35, 0.10
"""Share of a GPU's FLOPs that a training uses (MFU, arXiv 2204.02311, appendix B). Ours, and not measured: Llama 3 reports 0.38 to 0.43
with far larger batches (arXiv 2407.21783, table 4); experts one after the other in small pieces get less."""
DECODING = 0.3
"""Share of the bandwidth that transformers' ``generate`` uses. Ours, and not measured; a server such as vLLM uses more."""


def training_flops(shape: Shape, tokens: float, *, lora: bool = False, checkpointing: bool = True) -> float:
    """2 N per token forward, 4 N backward (Kaplan et al., arXiv 2001.08361, section 2.1), and 2 N for the forward pass again.

    N is :attr:`Shape.active`. Frozen weights need no gradients of their own, 2 N less, save the experts, which an adapter merges first.

    The attention's scores (4 q S L per token, forward) are left out, as they are small where S is far below h.
    """
    own = shape.sparse * 3 * shape.hidden * shape.chosen * shape.expert_width if lora else shape.active
    return tokens * ((6 if checkpointing else 4) * shape.active + 2 * own)


def reading_flops(shape: Shape, tokens: float) -> float:
    """2 N per token that passes forward alone."""
    return 2.0 * shape.active * tokens


def computing_seconds(shape: Shape, flops: float, gpu: Gpu, dtype: str) -> float:
    """Seconds of one GPU at the assumed share of its FLOPs."""
    most = gpu.flops_float32 if dtype == "float32" else gpu.flops
    return flops / (most * (MFU_EXPERTS if shape.experts else MFU_DENSE))


def decoding_seconds(shape: Shape, answers: int, prompt: float, answer: float, gpu: Gpu, dtype: str, batch: int = 128) -> float:
    """Seconds of one GPU to answer prompts, a batch at a time.

    Each token of a batch's answers reads from memory the weights that any of its B rows need, and the cache so far (half of the answer, on
    average); of E experts B rows need E (1 - (1 - e / E)^B). 2 N FLOPs per row at the full rate are the floor. The prompts are read
    before, :func:`reading_flops`.
    """
    if not answers:
        return 0.0
    size, rows = BYTES[dtype], min(batch, answers)
    needed = shape.active
    if shape.experts:
        hit = shape.experts * (1 - (1 - shape.chosen / shape.experts) ** rows)
        needed += int((hit - shape.chosen) * shape.sparse * 3 * shape.hidden * shape.expert_width)
    cache = 2 * shape.keys * shape.layers * rows * (prompt + answer / 2)
    most = gpu.flops_float32 if dtype == "float32" else gpu.flops
    step = max(size * (needed + cache) / (gpu.bandwidth * DECODING), 2 * shape.active * rows / most)
    return ceil(answers / batch) * answer * step + computing_seconds(shape, reading_flops(shape, answers * prompt), gpu, dtype)
