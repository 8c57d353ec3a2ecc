"""A plugin of vLLM (entry point `vllm.general_plugins`), loaded by each of its processes: mends its LoRA on the CPU.

A token without an adapter has the index -1 there, and vLLM's torch operators (0.32) take that for the last slot: as
soon as all `--max-loras` slots have been used, the base answers with somebody's adapter mixed in. Its GPU kernels leave
such tokens out, and so do these.
"""

from __future__ import annotations

from typing import Any

_OPERATORS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def register() -> None:
    """Called by vLLM at the start of each process."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in _OPERATORS:
        mended = leaving_out(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, mended)


def leaving_out(operator: Any) -> Any:
    """The operator on the inputs [tokens, in] of tokens that have an adapter; the others count as zeros."""
    if hasattr(operator, "mended"):
        return operator

    def mended(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> Any:
        has_adapter = (indices >= 0).unsqueeze(1)
        return operator(inputs * has_adapter, weights, output, indices, *rest, **named)

    mended.mended = True  # type: ignore[attr-defined]
    return mended
