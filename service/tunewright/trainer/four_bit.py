"""The base as QLoRA trains on it: its linear layers in NF4, all else in bfloat16. For the trainer, and for what
measures an adapter on the base that it was trained on."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4() -> BitsAndBytesConfig:
    """How transformers loads the base."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def prepared(model: PreTrainedModel, *, checkpointing: bool) -> PreTrainedModel:
    """The loaded base, ready for an adapter; `checkpointing` computes activations again in the backward pass.

    As in TRL 1.16, what is not quantized stays in bfloat16. peft's `prepare_model_for_kbit_training` makes it float32:
    the embeddings and the head, which take 2.2 GB more of a 7B base then, and the norms, whose results make the
    stream between layers float32 too. Norms, softmax and loss compute in float32 inside either way.
    """
    _keep_unpacked(model)
    model.requires_grad_(False)
    if checkpointing:
        # This also makes the embeddings' results require gradients.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _keep_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking weights on the CPU when an evaluation runs between training steps.

    Its AVX512 inference kernel repacks a layer in place at the first forward in eval mode, which fails for widths
    that 32 does not divide and is for inference only (bitsandbytes 0.50, nn/modules.py, Linear4bit.forward).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
