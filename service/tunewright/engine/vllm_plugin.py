"""A plugin of vLLM (entry point `vllm.general_plugins`), loaded by each of its processes: corrects it on the CPU.

A token without an adapter has the index -1, which vLLM's torch operators (0.32) take for the last slot: as soon as all
`--max-loras` slots have been used, answers of the base are mixed with an adapter. vLLM's GPU kernels leave such tokens
out, and so do the corrected operators.

vLLM's attention uses AMX tiles where the processor has them, but does not ask the system for them, as Linux requires of
each process (arch_prctl, ARCH_REQ_XCOMP_PERM): the first request then ends the worker with SIGILL, unless oneDNN has
asked by chance before.
"""

from __future__ import annotations

from typing import Any

_OPERATORS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def register() -> None:
    """Called by vLLM at the start of each process."""
    import torch
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in _OPERATORS:
        corrected = without_adapterless_tokens(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, corrected)
    request_amx(torch.cpu)


def request_amx(cpu: Any) -> None:
    """Ask the system for AMX tiles; where it refuses them, vLLM must not find them in `cpu`, the module torch.cpu."""
    if cpu._is_amx_tile_supported() and not cpu._init_amx():
        cpu._is_amx_tile_supported = lambda: False


def without_adapterless_tokens(operator: Any) -> Any:
    """The operator, applied to inputs [tokens, in] in which tokens without an adapter are zeros."""
    if hasattr(operator, "corrected"):
        return operator

    def corrected(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> Any:
        has_adapter = (indices >= 0).unsqueeze(1)
        return operator(inputs * has_adapter, weights, output, indices, *rest, **named)

    corrected.corrected = True  # type: ignore[attr-defined]
    return corrected
