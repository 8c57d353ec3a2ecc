"""AWQ layer by layer: the search is right on a CPU, the format is AutoAWQ's, and an interruption changes no byte."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tiny import tiny_model, token_rows, whole
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.evaluate.awq_weights import AwqWeights, dequantize, load_dequantized, unpack
from tunewright.evaluate.streamed import streamed_model
from tunewright.export import awq_quantizer, layerwise
from tunewright.export.awq_quantizer import AwqQuantizer
from tunewright.export.layerwise import LayerQuantizer, ScalingError
from tunewright.export.quantizer import Quantized, QuantizeOptions
from tunewright.registry.awq_check import AWQ_MODEL_TYPES, check_awq, quantized_modules
from tunewright.registry.safetensors_file import read_shapes

LARGER: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "ffn_dim": 256, "word_embed_proj_dim": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
    "pad_token_id": 0, "sliding_window": 16,
}  # fmt: skip
"""AWQ packs in multiples of 64 outputs."""
ROWS = token_rows(4, 32).tolist()


def quantize(model: Path, folder: Path, **changes: Any) -> tuple[Path, Quantized]:
    arguments: dict[str, Any] = {
        "rows": ROWS, "options": QuantizeOptions(group_size=64), "device": "cpu", "on_layer": lambda *_: None,
        "work": folder / "work",
    }  # fmt: skip
    report = AwqQuantizer().quantize(model, folder / "out", **(arguments | changes))
    return folder / "out", report


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=token_rows(4, 32, seed=5), use_cache=False).logits.float()
    return found


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL in nats."""
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def round_to_nearest(model: nn.Module, group_size: int) -> nn.Module:
    """The baseline that AWQ improves on: as many bits, without scaling or clipping."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            groups = module.weight.data.reshape(-1, group_size)
            low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            scale = (high - low) / 15
            zero = (-low / scale).round().clamp(0, 15)
            rounded = (((groups / scale).round() + zero).clamp(0, 15) - zero) * scale
            module.weight.data = rounded.reshape(module.weight.shape)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama") / "model", "llama", dtype=torch.bfloat16, **LARGER)


@pytest.fixture(scope="module")
def quantized(llama: Path) -> Path:
    return quantize(llama, llama.parent)[0]


# --- the search ---


def test_each_ratio_is_tried_on_the_weights_as_they_were() -> None:
    """The scales are those of the lowest error in a search of our own. AutoAWQ's own, on a CPU, finds others."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 32, 128) * torch.logspace(-1, 1, 128)
    layer = nn.Linear(128, 64, bias=False).requires_grad_(False)
    before = layer.weight.detach().clone()
    search = LayerQuantizer("llama", None, 64, inputs, "cpu")
    arguments = _search_arguments(search, layer, inputs)

    found = search._compute_best_scale(*arguments)

    errors = {ratio / 20: _error(search, before, inputs, arguments, ratio / 20) for ratio in range(20)}
    best = min(errors, key=lambda ratio: errors[ratio])
    torch.testing.assert_close(found, _scales(arguments, best))
    assert torch.equal(layer.weight, before), "the search changed the weights"
    compounded = super(LayerQuantizer, search)._compute_best_scale(*arguments)
    assert not torch.equal(layer.weight, before), (
        "AutoAWQ restores weights on a CPU by now: drop the override"
    )
    assert not torch.allclose(found, compounded)


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(256, 256, 2048), (320, 384, 700), (64, 128, 1535)])
def test_the_best_clipping_is_autoawqs(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, tokens: int
) -> None:
    monkeypatch.setattr(layerwise, "_ROWS_AT_ONCE", 100)
    search = LayerQuantizer.__new__(LayerQuantizer)
    search.w_bit, search.group_size, search.zero_point = 4, 64, True
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) * torch.rand(columns, generator=generator)
    found = search._compute_best_clip(weight, inputs)
    theirs = layerwise.quantizer.AwqQuantizer._compute_best_clip(search, weight, inputs)
    assert found.shape == theirs.shape
    assert (found == theirs).float().mean() > 0.99  # but for errors that are equal up to rounding
    assert (found < weight.reshape(rows, -1, 64).abs().amax(-1, keepdim=True)).float().mean() > 0.1


def test_scales_that_change_what_a_layer_computes_are_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an architecture in which AutoAWQ takes scales out of the wrong norm."""
    applied = layerwise.apply_scale

    def elsewhere(layer: nn.Module, scales: Any, input_feat_dict: Any = None) -> None:
        moved = [("post_attention_layernorm", *rest) if name == "input_layernorm" else (name, *rest)
                 for name, *rest in scales]  # fmt: skip
        applied(layer, moved, input_feat_dict=input_feat_dict)

    monkeypatch.setattr(layerwise, "apply_scale", elsewhere)

    with pytest.raises(ScalingError, match="LlamaDecoderLayer computes something else"):
        quantize(llama, tmp_path)


def test_each_layer_sees_what_it_sees_in_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2's layers attend in turn to a window and to everything."""
    model = tiny_model(tmp_path / "model", "gemma2", **LARGER)
    seen = []

    class Watched(LayerQuantizer):
        def quantize_layer(self, layer: nn.Module, arguments: dict[str, Any]) -> None:
            super().quantize_layer(layer, arguments)
            seen.append(self.inps)

    monkeypatch.setattr(awq_quantizer, "LayerQuantizer", Watched)

    quantize(model, tmp_path)

    reference = whole(model).model
    with torch.inference_mode():
        states = reference(torch.tensor(ROWS), output_hidden_states=True).hidden_states
        torch.testing.assert_close(seen[0], states[1])
        torch.testing.assert_close(reference.norm(seen[1]), states[2])


@pytest.mark.parametrize("model_type", AWQ_MODEL_TYPES)
def test_every_architecture_on_the_list_works(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(tmp_path / "model", model_type, **LARGER)

    out, report = quantize(model, tmp_path)

    reference = logits(whole(model))
    found = logits(load_dequantized(out, dtype=torch.float32, device="cpu"))
    assert report.layers == 2
    assert divergence(reference, found) < 1.2 * divergence(
        reference, logits(round_to_nearest(whole(model), 64))
    )
    packed = {name.removesuffix(".qweight") for name in _tensors(out) if name.endswith(".qweight")}
    assert packed == set(quantized_modules({name: shape for name, (_, shape) in read_shapes(model).items()}))


def test_the_list_has_all_that_autoawq_knows_but_what_is_said_to_be_missing() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    activations = {"bloom", "falcon", "gptj", "gpt_bigcode", "gpt_neox", "mpt", "starcoder2"}
    experts = {"mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"}
    code_of_their_own = {"minicpm3"}  # in transformers by now, with other modules than AutoAWQ knows

    here = {model_type for model_type in layerwise.AWQ_CAUSAL_LM_MODEL_MAP if model_type in KNOWN}

    assert here - activations - experts - code_of_their_own == set(AWQ_MODEL_TYPES)


def test_awq_is_closer_than_rounding_alone(tmp_path: Path) -> None:
    """A model with a few channels that are much larger, as in trained models: the case that AWQ is made for."""
    model = tiny_model(tmp_path / "model", "llama", **LARGER)
    file = model / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensors[name] = tensor * torch.where(torch.arange(128) % 16 == 0, 10.0, 1.0)
    save_file(tensors, file, metadata={"format": "pt"})

    out, _ = quantize(model, tmp_path)

    reference = logits(whole(model))
    rounded = divergence(reference, logits(round_to_nearest(whole(model), 64)))
    assert (
        divergence(reference, logits(load_dequantized(out, dtype=torch.float32, device="cpu")))
        < 0.9 * rounded
    )


def test_weights_are_clipped_too(
    llama: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping makes steps smaller, of values and of the MLP; queries and keys are left as they are."""
    monkeypatch.setattr(layerwise, "apply_clip", lambda *_: None)

    wide = _tensors(quantize(llama, tmp_path)[0])

    narrow = _tensors(quantized)
    for module in ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.0.{module}.scales"
        assert narrow[name].float().mean() < wide[name].float().mean()
    for module in ("self_attn.q_proj", "self_attn.k_proj"):
        name = f"model.layers.0.{module}.scales"
        assert torch.equal(narrow[name], wide[name])


# --- the format ---


def test_the_format_is_autoawqs(llama: Path, quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip
    assert config == json.loads((llama / "config.json").read_text())
    found, source = load_file(quantized / "model.safetensors"), load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    assert (found[f"{name}.qweight"].dtype, found[f"{name}.qweight"].shape) == (torch.int32, (256, 16))
    assert (found[f"{name}.qzeros"].dtype, found[f"{name}.qzeros"].shape) == (torch.int32, (4, 16))
    assert (found[f"{name}.scales"].dtype, found[f"{name}.scales"].shape) == (torch.float16, (4, 128))
    assert f"{name}.weight" not in found
    for kept in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(found[kept], source[kept])
    assert found["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    assert (quantized / "generation_config.json").exists()


def test_our_dequantization_is_autoawqs_to_the_bit(quantized: Path) -> None:
    from awq.utils.packing_utils import dequantize_gemm

    tensors = _tensors(quantized)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    weights = AwqWeights(quantized)

    assert len(names) == 14
    for name in names:
        parts = [tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")]
        theirs = dequantize_gemm(*parts, 4, 64)
        assert theirs.dtype == torch.float16
        assert torch.equal(weights.get(f"{name}.weight", "cpu").half(), theirs.T)
        assert 0 <= unpack(parts[0]).min() < unpack(parts[0]).max() <= 15


def test_rounded_scales_are_rounded_before_they_are_multiplied(quantized: Path) -> None:
    tensors = _tensors(quantized)
    name = "model.layers.0.mlp.up_proj"
    parts = [tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")]

    found = AwqWeights(quantized, scales=torch.bfloat16).get(f"{name}.weight", "cpu")

    assert torch.equal(found, dequantize(parts[0], parts[1], parts[2].bfloat16().float()))
    assert not torch.equal(found, dequantize(*parts))


def test_a_quantized_folder_streams_and_loads_alike(llama: Path, quantized: Path) -> None:
    weights = AwqWeights(quantized)
    streamed = streamed_model(quantized, weights=weights, device="cpu", dtype=torch.float32)

    assert torch.equal(
        logits(streamed), logits(load_dequantized(quantized, dtype=torch.float32, device="cpu"))
    )
    assert weights.names() == sorted(load_file(llama / "model.safetensors"))
    assert "model.layers.0.mlp.up_proj.weight" in weights
    assert "model.layers.9.mlp.up_proj.weight" not in weights
    with pytest.raises(KeyError):
        weights.get("model.layers.9.mlp.up_proj.weight", "cpu")


def test_other_formats_are_refused(llama: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="not quantized by AWQ"):
        AwqWeights(llama)


# --- interruptions ---

CHILD = """
import os, signal, sys
from pathlib import Path
from test_awq import quantize
def on_layer(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
quantize(Path(sys.argv[1]), Path(sys.argv[2]), on_layer=on_layer)
"""


def test_killed_and_started_again_it_reuses_layers_and_makes_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "gemma2", **LARGER | {"num_hidden_layers": 4})
    undisturbed, _ = quantize(model, tmp_path / "undisturbed")
    folder = tmp_path / "killed"

    def end_after_one(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, folder, on_layer=end_after_one)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), str(folder), "3"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert len(list((folder / "work").glob("layer-*.safetensors"))) == 3
    assert not (folder / "out").exists()
    (
        folder / "work" / "layer-00001.safetensors"
    ).unlink()  # a gap: activations pass through what is done already
    out, report = quantize(model, folder)

    assert report.reused == 2
    assert _hashes(out) == _hashes(undisturbed)


def test_layers_of_other_calibration_text_are_not_reused(llama: Path, tmp_path: Path) -> None:
    first, _ = quantize(llama, tmp_path)
    first.rename(tmp_path / "first")

    _, same = quantize(llama, tmp_path)
    (tmp_path / "out").rename(tmp_path / "second")
    _, other = quantize(llama, tmp_path, rows=token_rows(4, 32, seed=9).tolist())

    assert (same.reused, other.reused) == (2, 0)
    assert _hashes(tmp_path / "first") == _hashes(tmp_path / "second") != _hashes(tmp_path / "out")


def test_progress_is_told_after_each_layer(llama: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []

    quantize(llama, tmp_path, on_layer=lambda done, total: progress.append((done, total)))

    assert progress == [(0, 2), (1, 2), (2, 2)]


def test_what_cannot_be_quantized_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama", **LARGER | {"intermediate_size": 320})

    with pytest.raises(InvalidRequest, match=r"mlp\.down_proj has 320 inputs"):
        quantize(model, tmp_path, options=QuantizeOptions(group_size=128))

    assert not (tmp_path / "work").exists()


def test_check_and_quantizer_mean_the_same_modules(llama: Path) -> None:
    shapes = {name: shape for name, (_, shape) in read_shapes(llama).items()}

    assert check_awq(json.loads((llama / "config.json").read_text()), shapes, "largest") == 128
    assert len(quantized_modules(shapes)) == 14


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return found


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def _search_arguments(search: LayerQuantizer, layer: nn.Linear, inputs: torch.Tensor) -> tuple[Any, ...]:
    """As _search_best_scale makes them."""
    groups = layer.weight.detach().reshape(-1, search.group_size).abs()
    weight_mean = (groups / (groups.amax(1, keepdim=True) + 1e-6)).reshape(layer.weight.shape).mean(0)
    input_mean = inputs.abs().reshape(-1, inputs.shape[-1]).mean(0)
    return inputs, weight_mean, input_mean, layer, [layer], layer(inputs).detach(), {}


def _scales(arguments: tuple[Any, ...], ratio: float) -> torch.Tensor:
    scales = (arguments[2] ** ratio / (arguments[1] ** (1 - ratio) + 1e-4)).clamp(min=1e-4)
    found: torch.Tensor = scales / (scales.max() * scales.min()).sqrt()
    return found


def _error(
    search: LayerQuantizer,
    weight: torch.Tensor,
    inputs: torch.Tensor,
    arguments: tuple[Any, ...],
    ratio: float,
) -> float:
    scales = _scales(arguments, ratio)
    rounded = search.pseudo_quantize_tensor(weight * scales)[0] / scales
    return (inputs @ rounded.T - inputs @ weight.T).pow(2).mean().item()
