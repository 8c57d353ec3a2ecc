"""The plugin of vLLM's CPU operators: a token without an adapter gets nothing of the last slot."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops

from tunewright.engine.vllm_plugin import without_adapterless_tokens

SLOTS, IN, OUT = 4, 6, 8
INDICES = torch.tensor([0, -1, 3, -1, 1])


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(len(INDICES), IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(SLOTS, 1, OUT, IN, generator=torch.Generator().manual_seed(1))


Call = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], None]
CALLS: dict[str, Call] = {
    "bgmv_shrink": lambda op, x, w, y: op(x, w, y, INDICES, 2.0),
    "bgmv_expand": lambda op, x, w, y: op(x, w, y, INDICES, add_inputs=True),
    "bgmv_expand_slice": lambda op, x, w, y: op(x, w, y, INDICES, 0, OUT, add_inputs=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_tokens_without_an_adapter_are_left_out(
    name: str, inputs: torch.Tensor, weights: torch.Tensor
) -> None:
    operator = getattr(lora_ops, name)
    plain, mended = torch.zeros(len(INDICES), OUT), torch.zeros(len(INDICES), OUT)
    CALLS[name](operator, inputs, weights, plain)
    CALLS[name](without_adapterless_tokens(operator), inputs, weights, mended)
    with_adapter = INDICES >= 0
    assert torch.equal(mended[with_adapter], plain[with_adapter])
    assert not mended[~with_adapter].any()
    assert plain[~with_adapter].any(), "vLLM's own takes the last slot; without that fault the plugin can go"


def test_it_is_mended_once() -> None:
    once = without_adapterless_tokens(lora_ops.bgmv_shrink)
    assert without_adapterless_tokens(once) is once


def test_vllm_finds_it() -> None:
    [found] = entry_points(group="vllm.general_plugins", name="tunewright")
    assert found.value == "tunewright.engine.vllm_plugin:register"
