"""A model whose weights stream computes what the whole model computes, and never holds more than a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tiny import tiny_adapter, tiny_model, token_rows, whole
from tunewright.errors import UnsupportedFeature
from tunewright.evaluate.streamed import streamed_model
from tunewright.evaluate.weights import SafetensorsWeights

ATTENTION: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
CONV = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
EVERYWHERE = {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "use_dora": True}
REPLACED = {**ATTENTION, "modules_to_save": ["lm_head", "norm"]}


def logits(model: nn.Module) -> torch.Tensor:
    """The logits of two rows, the second padded."""
    tokens = token_rows(2, 24)
    mask = torch.ones_like(tokens)
    mask[1, 15:] = 0
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return found


def streamed(base: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    return streamed_model(base, weights=SafetensorsWeights(base), device="cpu", dtype=dtype, adapter=adapter)


@pytest.mark.parametrize(
    ("model_type", "tied", "adapter"),
    [
        ("llama", False, None),
        ("llama", True, None),
        ("llama", False, ATTENTION),
        ("llama", False, {**ATTENTION, "use_dora": True}),
        ("llama", False, EVERYWHERE),
        ("llama", False, REPLACED),
        ("llama", True, {**ATTENTION, "modules_to_save": ["embed_tokens"]}),
        ("qwen2", False, ATTENTION),
        ("gemma2", True, {**ATTENTION, "use_rslora": True}),
        ("gemma3_text", True, None),
        ("gemma3_text", True, ATTENTION),
        ("gpt2", True, None),
        ("gpt2", True, CONV),
    ],
)
def test_the_logits_are_those_of_the_whole_model_to_the_bit(
    tmp_path: Path, model_type: str, tied: bool, adapter: dict[str, Any] | None
) -> None:
    base = tiny_model(tmp_path / "base", model_type, tie_word_embeddings=tied)
    folder = tiny_adapter(tmp_path / "adapter", base, **adapter) if adapter else None

    expected, plain = logits(whole(base, folder)), logits(whole(base))

    assert torch.equal(logits(streamed(base, folder)), expected)
    assert folder is None or not torch.allclose(expected, plain, atol=0.01), "the adapter does nothing"


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_on_a_sixteen_bit_base_adapters_are_computed_as_peft_does(
    tmp_path: Path, stored: torch.dtype
) -> None:
    base = tiny_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    adapter = tiny_adapter(tmp_path / "adapter", base, **REPLACED)
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file)

    expected = logits(whole(base, adapter, torch.bfloat16))

    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(streamed(base, adapter, torch.bfloat16)), expected)


class Counted(SafetensorsWeights):
    """Notes how many of the base's parameters are real whenever one more is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model: nn.Module | None = None
        self.base: set[str] = set()
        self.most = 0

    def get(self, name: str, device: str) -> torch.Tensor:
        tensor = super().get(name, device)
        if self.model is not None:
            self.most = max(self.most, self.real() + tensor.numel())
        return tensor

    def real(self) -> int:
        assert self.model is not None
        parameters = dict(self.model.named_parameters())
        return sum(p.numel() for name, p in parameters.items() if name in self.base and not p.is_meta)


@pytest.mark.parametrize("adapter", [None, REPLACED, EVERYWHERE])
def test_never_more_than_one_layer_is_in_memory_and_nothing_is_left(
    tmp_path: Path, adapter: dict[str, Any] | None
) -> None:
    base = tiny_model(tmp_path / "base", "llama", num_hidden_layers=5)
    folder = tiny_adapter(tmp_path / "adapter", base, **adapter) if adapter else None
    weights = Counted(base)
    model = streamed_model(base, weights=weights, device="cpu", dtype=torch.float32, adapter=folder)
    weights.base = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    weights.model = model
    layer = sum(p.numel() for p in whole(base).model.layers[0].parameters())

    assert weights.real() == 0
    logits(model)

    assert weights.most == layer
    assert weights.real() == 0


def test_a_run_that_fails_leaves_nothing_in_memory(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "llama")
    model = streamed(base)
    model.model.layers[1].mlp.register_forward_hook(_fail)

    with pytest.raises(RuntimeError, match="in the middle"):
        logits(model)

    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_adapter_without_weights_for_a_module_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "llama")
    adapter = tiny_adapter(tmp_path / "adapter", base, **ATTENTION)
    file = adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "layers.1.mlp" not in name}, file)

    with pytest.raises(UnsupportedFeature, match=r"layers\.1\.mlp"):
        streamed(base, adapter)


def test_models_whose_files_name_tensors_otherwise_are_refused(tmp_path: Path) -> None:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    }
    base = tiny_model(tmp_path / "base", "qwen3_moe", **experts)

    with pytest.raises(UnsupportedFeature, match="named otherwise") as refusal:
        streamed(base)

    assert refusal.value.code == "export_unsupported"
    assert "experts" in str(refusal.value)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "llama")
    wider = tiny_model(tmp_path / "wider", "llama", intermediate_size=192)
    model = streamed_model(base, weights=SafetensorsWeights(wider), device="cpu", dtype=torch.float32)

    with pytest.raises(UnsupportedFeature, match=r"gate_proj.*\[192, 64\].*\[128, 64\]"):
        logits(model)


def _fail(*_: Any) -> None:
    raise RuntimeError("in the middle")
