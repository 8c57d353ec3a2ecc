"""Quantizes with AutoAWQ's algorithm, layer by layer, so that neither the device nor the host holds the whole model.

Each quantized layer is saved in the work folder at once, and reused after an interruption. The activations of the
calibration text are computed again: that takes one forward pass, while the search takes more than a hundred.

Dtypes: on a GPU the search computes in the 16-bit type of the model (float16 would overflow in models that were trained
in bfloat16); on a CPU in float32, since not every CPU has fast 16-bit arithmetic. The output has AutoAWQ's format:
scales and biases of quantized modules in float16, all other tensors in the types that they had in the model.

Memory on the host: the inputs of all linear modules of a layer, for the whole calibration text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tunewright.atomic import publish_folder, sync_folder, write_atomically
from tunewright.evaluate.streamed import Skeleton, Unit, attach, build_skeleton
from tunewright.evaluate.weights import SafetensorsWeights
from tunewright.export.layerwise import BITS, LayerQuantizer
from tunewright.export.model_files import copy_tokenizer
from tunewright.export.quantizer import Quantized, QuantizeOptions
from tunewright.export.shards import pieces, write_shards
from tunewright.registry.awq_check import check_awq
from tunewright.registry.safetensors_file import read_shapes, weight_files

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAN = "plan.json"
_AT_ONCE = 16
"""Calibration blocks in one forward pass up to the first layer."""


class AwqQuantizer:
    """A `Quantizer` to 4 bits with zero points, in the GEMM layout, which vLLM repacks for its kernels."""

    name = "autoawq"

    def quantize(
        self,
        model: Path,
        out: Path,
        *,
        rows: list[list[int]],
        options: QuantizeOptions,
        device: str,
        on_layer: Callable[[int, int], None],
        work: Path,
    ) -> Quantized:
        """See `Quantizer`. Raises InvalidRequest (code export_unsupported) before any layer, and ScalingError."""
        began = time.monotonic()
        shapes = read_shapes(model)
        config = json.loads((model / "config.json").read_text())
        check_awq(config, {name: shape for name, (_, shape) in shapes.items()}, options.group_size)
        dtypes = {name: _DTYPES[dtype] for name, (dtype, _) in shapes.items() if dtype in _DTYPES}
        weights = SafetensorsWeights(model)
        dtype = _compute_dtype(config, device)
        skeleton = build_skeleton(
            model, weights=weights, device=device, dtype=dtype, trust_remote_code=options.trust_remote_code
        )
        reused = _begin(work, _plan(model, rows, options, device, dtype))
        count = len(skeleton.layers)
        on_layer(len(reused), count)
        if len(reused) < count:
            inputs, arguments = _calibrate(skeleton, weights, rows, device, dtype)
            layerwise = LayerQuantizer(
                config["model_type"], skeleton.model.config, options.group_size, inputs, device
            )
            done = len(reused)
            for at, unit in enumerate(skeleton.layers[: _last_missing(reused, count) + 1]):
                names = _names(unit)
                unit.load(weights, device, dtype)
                if at in reused:
                    layerwise.skip(unit.module, arguments[at])
                else:
                    layerwise.quantize_layer(unit.module, arguments[at])
                    _save(_packed(unit.module, names, dtypes), _file(work, at))
                    done += 1
                    on_layer(done, count)
                skeleton.stack[at] = unit.module = nn.Module()
                unit.places.clear()  # the last references to the layer: frees its memory
        size = _assemble(model, out, config, options, [_file(work, at) for at in range(count)])
        return Quantized(
            layers=count,
            reused=len(reused),
            tokens=sum(map(len, rows)),
            bytes=size,
            seconds=round(time.monotonic() - began, 1),
            versions={name: version(name) for name in ("autoawq", "torch", "transformers")},
        )


def _compute_dtype(config: dict[str, Any], device: str) -> torch.dtype:
    if device == "cpu":
        return torch.float32
    return torch.float16 if config.get("dtype", config.get("torch_dtype")) == "float16" else torch.bfloat16


def _plan(
    model: Path, rows: list[list[int]], options: QuantizeOptions, device: str, dtype: torch.dtype
) -> str:
    """All inputs that the quantized layers depend on, as JSON."""
    status = {file.name: file.stat() for file in weight_files(model)}
    return json.dumps(
        {
            "model": {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()},
            "config": hashlib.sha256((model / "config.json").read_bytes()).hexdigest(),
            "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "group_size": options.group_size,
            "device": device,
            "dtype": str(dtype),
            "versions": [version(name) for name in ("autoawq", "torch", "transformers")],
        },
        indent=2,
    )


def _begin(work: Path, plan: str) -> set[int]:
    """The layers that an earlier run with the same plan finished; everything else in the work folder is removed."""
    work.mkdir(parents=True, exist_ok=True)
    written = work / _PLAN
    if not written.exists() or written.read_text() != plan:
        for file in work.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        write_atomically(written, plan)
    return {int(file.stem.removeprefix("layer-")) for file in work.glob("layer-*.safetensors")}


def _last_missing(reused: set[int], count: int) -> int:
    return max(set(range(count)) - reused)


class _Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


def _calibrate(
    skeleton: Skeleton, weights: SafetensorsWeights, rows: list[list[int]], device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The inputs of the first layer, [blocks, tokens, channels] on the host, and the other arguments of each layer.

    The arguments differ between layers whose attention masks differ. They are recorded for one block and fit all, since
    blocks are equally long.
    """
    for unit in skeleton.others:
        attach(unit, unit.module, weights, device, dtype)
    arguments: list[dict[str, Any]] = []
    inputs: list[torch.Tensor] = []
    whole = True

    def record(hidden_states: torch.Tensor, *_: Any, **others: Any) -> torch.Tensor:
        if whole:
            arguments.append(others)
        else:
            inputs.append(hidden_states.cpu())
        if not whole or len(arguments) == len(skeleton.layers):
            raise _Stop
        return hidden_states

    tokens = torch.tensor(rows, device=device)
    try:
        for layer in skeleton.stack:
            layer.forward = record
        for chunk in (tokens[:1], *tokens.split(_AT_ONCE)):
            with suppress(_Stop), torch.no_grad():
                skeleton.model(input_ids=chunk, use_cache=False)
            whole = False
    finally:
        for layer in skeleton.stack:
            del layer.forward
    return torch.cat(inputs), arguments


def _names(unit: Unit) -> dict[str, str]:
    """The names of a layer's parameters in the files, by their names in the layer ("mlp.up_proj.weight")."""
    paths = {id(module): path for path, module in unit.module.named_modules()}
    return {f"{paths[id(module)]}.{key}": name for module, key, name in unit.places}


def _packed(
    layer: nn.Module, names: dict[str, str], dtypes: dict[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """The tensors of a quantized layer, by their names in the files."""
    state = layer.state_dict()
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        if f"{module}.qweight" in state:
            found[names[f"{module}.weight"].removesuffix("weight") + kind] = tensor.cpu().contiguous()
        else:
            found[names[key]] = tensor.to("cpu", dtypes[names[key]]).contiguous()
    return found


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _file(work: Path, layer: int) -> Path:
    return work / f"layer-{layer:05d}.safetensors"


def _assemble(
    model: Path, out: Path, config: dict[str, Any], options: QuantizeOptions, layers: list[Path]
) -> int:
    """Write the new model under a temporary name and publish it. Returns the bytes of its weights."""
    packed = [piece for layer in layers for piece in pieces(layer)]
    names = {piece.name for piece in packed}
    quantized = {f"{name.removesuffix('.qweight')}.weight" for name in names if name.endswith(".qweight")}
    rest = [
        piece for file in weight_files(model) for piece in pieces(file) if piece.name not in names | quantized
    ]
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": options.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    copy_tokenizer(model, temporary, chat_template=None)
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = write_shards(temporary, rest + packed)
    publish_folder(temporary, out)
    return size
