"""What makes a model's steps faster, with the same results but for rounding."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def leave_out_mask(model: PreTrainedModel | PeftModel, *, always: bool = False) -> None:
    """Keep the attention mask from the model, for batches that are padded on the right.

    In a causal model no token attends to what is behind it, and padding has no loss. Without a mask attention takes the
    kernels for causal attention, which need less time, and no copies of keys and values for each head. A router's
    loss (mixtures of experts) counts tokens by the mask, so that there it stays, unless it is left out `always`: where
    rows are packed, which a mask would join, and little is padding.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    if not always and getattr(causal.config.get_text_config(), "output_router_logits", False):
        return
    causal.base_model.register_forward_pre_hook(_without_mask, with_kwargs=True)


def _without_mask(
    _: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, {**named, "attention_mask": None}


def compile_layers(model: PreTrainedModel | PeftModel, backend: str = "inductor") -> int:
    """Have torch.compile compile the model's layers at the first step, and return how many there are.

    Layers are alike, so that one is compiled, and once more for rows of any length. What cannot be compiled, as on a
    machine without a C compiler, is computed as before, and the log says why.
    """
    torch._dynamo.config.suppress_errors = True
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)


def uncompiled() -> AbstractContextManager[Any]:
    """Within it nothing is compiled: evaluations are few batches, and have other graphs."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
