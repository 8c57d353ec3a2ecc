"""A plugin of vLLM (entry point `vllm.general_plugins`), loaded by each of its processes: corrects LoRA on the CPU.

A token without an adapter has the index -1, which vLLM's torch operators (0.32) take for the last slot: as soon as all
`--max-loras` slots have been used, answers of the base are mixed with an adapter. vLLM's GPU kernels leave such tokens
out, and so do the corrected operators.
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
        corrected = without_adapterless_tokens(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, corrected)


def without_adapterless_tokens(operator: Any) -> Any:
    """The operator, applied to inputs [tokens, in] in which tokens without an adapter are zeros."""
    if hasattr(operator, "corrected"):
        return operator

    def corrected(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> Any:
        has_adapter = (indices >= 0).unsqueeze(1)
        return operator(inputs * has_adapter, weights, output, indices, *rest, **named)

    corrected.corrected = True  # type: ignore[attr-defined]
    return corrected
