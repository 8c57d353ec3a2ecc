"""Measures what an adapter of QLoRA loses by being served on the base in 16 bits: its loss there, and on the base in 4
bits, as it was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunewright.evaluate.folder import FourBitLoss, ReferenceRow
from tunewright.registry.safetensors_file import weight_files
from tunewright.trainer.four_bit import nf4, prepared

_MEMORY_FACTOR = 1.0
"""Memory for loading the base in 4 bits, as a multiple of its weights. Embeddings, which are most of a small base, stay
in 16 bits."""
_SPARE = 2**29


def four_bit_loss(
    base: Path, adapter: str, rows: list[ReferenceRow], *, device: str, **options: Any
) -> FourBitLoss | None:
    """None where memory is too small, there are no rows, or numbers overflow.

    Raises any exception of transformers and bitsandbytes.
    """
    if not rows or not _has_room(base, device):
        return None
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=nf4(),
        device_map={"": device},
        attn_implementation="sdpa",
        **options,
    )
    adapted = PeftModel.from_pretrained(prepared(model, checkpointing=False), adapter).eval()
    trained = served = 0.0
    for row in rows:
        tokens = torch.tensor([row.tokens], device=device)
        with torch.inference_mode():
            logprobs = adapted(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        trained -= float(logprobs.gather(1, tokens[0, 1:, None]).sum())
        served -= sum(place[token] for place, token in zip(row.adapted, row.tokens[1:], strict=True))
    count = sum(len(row.tokens) - 1 for row in rows)
    if not math.isfinite(trained + served):
        return None
    loss, served_loss = round(trained / count, 6), round(served / count, 6)
    return FourBitLoss(loss=loss, served_loss=served_loss, difference=round(served_loss - loss, 6))


def _has_room(base: Path, device: str) -> bool:
    needed = sum(file.stat().st_size for file in weight_files(base)) * _MEMORY_FACTOR + _SPARE
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    return bool(needed < free)
