"""What AWQ cannot do is refused by its name and dimension, without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tunewright.errors import InvalidRequest
from tunewright.export.quantizer import pack
from tunewright.registry.awq_check import AWQ_MODEL_TYPES, check_awq, quantized_modules

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 256}


def shapes(inputs: int = 256, wide: int = 768, values: int = 128) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (999, inputs),
        "lm_head.weight": (999, inputs),
    }
    for layer in range(2):
        for name, shape in {
            "self_attn.v_proj.weight": (values, inputs),
            "self_attn.v_proj.bias": (values,),
            "mlp.up_proj.weight": (wide, inputs),
            "mlp.down_proj.weight": (inputs, wide),
            "input_layernorm.weight": (inputs,),
        }.items():
            found[f"model.layers.{layer}.{name}"] = shape
    return found


@pytest.mark.parametrize(("wide", "expected"), [(768, 128), (448, 64), (704, 64), (192, 64)])
def test_the_largest_group_size_that_divides_every_module(wide: int, expected: int) -> None:
    assert check_awq(LLAMA, shapes(wide=wide), "largest") == expected


def test_the_smallest_group_size_is_found_too() -> None:
    narrow = {"model.layers.0.mlp.up_proj.weight": (64, 96), "model.layers.0.mlp.gate_proj.weight": (64, 128)}

    assert check_awq(LLAMA, narrow, "largest") == 32


def test_what_no_group_size_divides_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"up_proj has 72 inputs, which no group size") as refusal:
        check_awq(LLAMA, {"model.layers.0.mlp.up_proj.weight": (64, 72)}, "largest")

    assert refusal.value.code == "export_unsupported"


@pytest.mark.parametrize("size", [128, 64, 32])
def test_a_group_size_that_fits_is_taken(size: int) -> None:
    assert check_awq(LLAMA, shapes(), size) == size


def test_embeddings_and_the_head_are_not_quantized() -> None:
    assert set(quantized_modules(shapes())) == {
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    }


@pytest.mark.parametrize(
    ("config", "changes", "size", "message"),
    [
        (
            {},
            {"wide": 448},
            128,
            r"layers\.0\.mlp\.down_proj has 448 inputs.*128 does not divide; 64, 32 would",
        ),
        ({}, {"wide": 704, "inputs": 64}, 128, r"layers\.0\.self_attn\.v_proj has 64 inputs"),
        ({}, {"values": 96}, 128, r"layers\.0\.self_attn\.v_proj has 96 outputs, which 64 does not divide"),
        ({"model_type": "gpt_neox"}, {}, 128, "architecture gpt_neox"),
        ({"model_type": "gemma3_text"}, {}, 128, "architecture gemma3_text"),
        ({"model_type": "llama", "num_local_experts": 8}, {}, 128, "llama is a mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, {}, 128, "qwen3_moe is a mixture of experts"),
        ({"model_type": "gemma3", "text_config": {}}, {}, 128, "gemma3 is a multimodal model"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, 128, r"quantized already \(by gptq\)"),
        (
            {"model_type": "opt", "do_layer_norm_before": False},
            {},
            128,
            "opt with do_layer_norm_before False",
        ),
        ({"model_type": "stablelm", "use_parallel_residual": True}, {}, 128, "stablelm with use_parallel"),
    ],
)
def test_what_does_not_fit_is_named(config: Any, changes: Any, size: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        check_awq(LLAMA | config, shapes(**changes), size)

    assert refusal.value.code == "export_unsupported"


def test_other_group_sizes_are_a_mistake_of_the_request() -> None:
    with pytest.raises(InvalidRequest, match="128, 64, 32") as refusal:
        check_awq(LLAMA, shapes(), 16)

    assert refusal.value.param == "group_size"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to quantize"):
        check_awq(LLAMA, {"lm_head.weight": (64, 64)}, 128)


def test_the_usual_settings_of_known_architectures_are_taken() -> None:
    for model_type in AWQ_MODEL_TYPES:
        usual = {"model_type": model_type, "do_layer_norm_before": True, "use_parallel_residual": False}
        assert check_awq(usual, shapes(), 128) == 128


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys, tunewright.registry.awq_check, tunewright.export.quantizer, tunewright.export.shards\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'awq', 'transformers', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- calibration text ---


def test_long_rows_are_cut_and_short_ones_joined() -> None:
    assert pack([list(range(10)), [10], [], [11, 12, 13, 14]], length=4) == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
    ]  # fmt: skip


def test_a_single_short_row_is_enough() -> None:
    assert pack([[7, 8, 9]]) == [[7, 8, 9]]


def test_no_more_blocks_than_asked_for() -> None:
    assert pack(([at] for at in range(100)), length=2, total=2) == [[0, 1], [2, 3]]


def test_no_token_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        pack([[], []])
