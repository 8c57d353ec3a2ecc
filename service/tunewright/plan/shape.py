"""The shape of a model, from its config and the headers of its weight files: what memory and time are computed from.

Pure: the caller reads the files (`registry.model_shape`). The names of modules are those of the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = "lm_head"
_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tokens_embed", "tok_embeddings", "embed_positions"}
)  # fmt: skip
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MLP_NAMES = frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe", "experts", "shared_expert"})
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8,
}  # fmt: skip


class UnknownShape(Exception):
    """The config does not say what is needed; the message says what is missing."""


@dataclass(frozen=True)
class LinearModule:
    """A linear layer, or an embedding, where `is_embedding`."""

    name: str
    inputs: int
    outputs: int
    is_embedding: bool = False
    """Also true of the output head: neither is adapted unless it is named, nor quantized."""
    ranks: int = 1
    """Multiples of the rank that peft gives it: a layer's experts are one module."""

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """A causal language model with decoder layers."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP; of a mixture of experts, the width of all experts that a token passes through."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    is_tied: bool
    """Whether the output head is the embedding."""
    is_gated: bool
    """Whether the MLP multiplies two projections (SwiGLU), and keeps both."""
    experts: int
    experts_per_token: int
    parameters: Mapping[str, int]
    """Numbers by kind: embedding, head (none where it is tied), attention, mlp, experts, norm, other."""
    dtype: str
    """The type that most of the weights are stored in."""
    stored_bytes: int
    modules: tuple[LinearModule, ...]
    expert_modules: tuple[LinearModule, ...]
    """The experts of all layers, as peft 0.21 adapts them where it knows the architecture (Mixtral and Qwen's): one
    module for gate and up, of twice the rank, and one for down, each with a low rank for every expert."""
    biases: int
    """Numbers in the biases of linear layers."""

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def linear_weights(self) -> int:
        """Numbers in the weights of the linear layers, which QLoRA quantizes. Experts are none."""
        return sum(module.weights for module in self.modules if not module.is_embedding)

    @property
    def largest_linear(self) -> int:
        return max((module.weights for module in self.modules if not module.is_embedding), default=0)

    @property
    def active(self) -> int:
        """Parameters that a token's forward pass multiplies with: no embedding, and of the experts those it uses."""
        experts = self.parameters.get("experts", 0)
        used = experts * self.experts_per_token // self.experts if self.experts else 0
        head = self.vocabulary * self.hidden
        rest = sum(self.parameters.get(kind, 0) for kind in ("attention", "mlp", "other"))
        return rest + used + head

    def adapted(self, targets: str | Sequence[str] | None) -> tuple[LinearModule, ...]:
        """The modules that LoRA adapts, as peft chooses them: "all-linear", or names that modules end in."""
        if targets is None:
            return ()
        if targets == "all-linear":
            return (*(module for module in self.modules if not module.is_embedding), *self.expert_modules)
        names = [targets] if isinstance(targets, str) else targets
        return tuple(m for m in self.modules if any(_matches(m.name, name) for name in names))

    def missed(self, targets: str | Sequence[str] | None) -> list[str]:
        """Those of the named targets that no module of the model ends in."""
        if targets is None or isinstance(targets, str):
            return []
        return [name for name in targets if not any(_matches(m.name, name) for m in self.modules)]

    def leaves(self) -> list[str]:
        """The names that can be adapted: the last parts of the names of the linear layers."""
        return sorted({module.leaf for module in self.modules if not module.is_embedding})


def adapter_parameters(modules: Sequence[LinearModule], rank: int, *, use_dora: bool = False) -> int:
    """Trainable parameters of LoRA on these modules: A [rank, in] and B [out, rank], and DoRA's magnitudes [out]."""
    return sum(rank * m.ranks * (m.inputs + m.outputs) + (m.outputs if use_dora else 0) for m in modules)


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> ModelShape:
    """The shape of a model with this config.json and these tensors (name -> dtype, shape). Raises UnknownShape."""
    text = config.get("text_config") or config
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    heads = _number(text, "num_attention_heads", "n_head")
    kv_heads = _optional(text, "num_key_value_heads", "num_kv_heads") or heads
    experts = _optional(text, *_EXPERT_COUNTS) or 0
    per_token = _optional(text, "num_experts_per_tok", "moe_topk") or (1 if experts else 0)
    intermediate = _optional(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    width = _optional(text, "moe_intermediate_size") or intermediate
    if experts:
        intermediate = width * per_token + (_optional(text, "shared_expert_intermediate_size") or 0)
    has_head = any(name.split(".")[-2:-1] == [HEAD] for name in tensors)
    declared = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    is_tied = declared is True or (declared is None and not has_head)
    parameters: dict[str, int] = {}
    by_dtype: dict[str, int] = {}
    modules: list[LinearModule] = []
    stored = biases = 0
    for name, (dtype, shape) in tensors.items():
        count = math.prod(shape)
        stored += count * ITEM_BYTES.get(dtype, 2)
        kind = _kind(name)
        if kind == "head" and is_tied:
            continue  # the file has a copy of what is tied in memory
        parameters[kind] = parameters.get(kind, 0) + count
        by_dtype[dtype] = by_dtype.get(dtype, 0) + count
        biases += count if name.endswith(".bias") and kind in ("attention", "mlp", "other") else 0
        if (module := _module(name, shape, kind, config)) is not None:
            modules.append(module)
    if is_tied and not any(module.leaf == HEAD for module in modules):
        modules += [LinearModule(HEAD, m.inputs, m.outputs, True) for m in modules if _is_input(m)][:1]
    vocabulary = _number(text, "vocab_size")
    return ModelShape(
        model_type=str(config.get("model_type", "")),
        layers=_number(text, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_optional(text, "head_dim") or hidden // heads,
        vocabulary=vocabulary,
        context=_optional(text, "max_position_embeddings", "n_positions") or 2048,
        is_tied=is_tied,
        is_gated=any(m.leaf in ("gate_proj", "gate_up_proj", "w1") for m in modules) or bool(experts),
        experts=experts,
        experts_per_token=per_token,
        parameters=parameters,
        dtype=max(by_dtype, key=by_dtype.__getitem__) if by_dtype else "BF16",
        stored_bytes=stored,
        modules=tuple(modules),
        expert_modules=_experts(hidden, width, experts, _number(text, "num_hidden_layers"))
        if experts
        else (),
        biases=biases,
    )


def _kind(name: str) -> str:
    parts = name.split(".")
    owner = parts[-2] if len(parts) > 1 else ""
    if owner == HEAD:
        return "head"
    if owner in _EMBEDDINGS:
        return "embedding"
    if "experts" in parts:
        return "experts"
    if "norm" in owner or owner.startswith("ln_") or owner.endswith("layernorm"):
        return "norm"
    if any("attn" in part or "attention" in part for part in parts):
        return "attention"
    return "mlp" if _MLP_NAMES & set(parts) else "other"


def _module(name: str, shape: tuple[int, ...], kind: str, config: Mapping[str, Any]) -> LinearModule | None:
    """The linear layer or embedding that has this weight, or None."""
    module = name.removesuffix(".weight")
    if module == name or len(shape) != 2 or kind in ("norm", "experts"):
        return None
    outputs, inputs = shape
    if config.get("model_type") == "gpt2" and kind not in ("embedding", "head"):
        outputs, inputs = inputs, outputs  # Conv1D: [in, out]
    return LinearModule(module, inputs, outputs, kind in ("embedding", "head"))


def _experts(hidden: int, width: int, experts: int, layers: int) -> tuple[LinearModule, ...]:
    of_a_layer = (
        LinearModule("experts.gate_up_proj", hidden, 2 * width, ranks=2 * experts),
        LinearModule("experts.down_proj", width, hidden, ranks=experts),
    )
    return of_a_layer * layers


def _is_input(module: LinearModule) -> bool:
    return module.is_embedding and module.leaf not in ("wpe", "embed_positions")


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _optional(config: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _number(config: Mapping[str, Any], *keys: str) -> int:
    found = _optional(config, *keys)
    if found is None:
        raise UnknownShape(f"the config.json has no {keys[0]}")
    return found
