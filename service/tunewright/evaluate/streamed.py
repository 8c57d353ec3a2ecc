"""A causal language model whose weights are on its device only while they are used. Imports torch.

The model is that of transformers, built on the meta device. Hooks load the weights of a decoder layer (or another
module with parameters) right before it runs, and free them right after. So memory holds one layer and the activations,
however large the model is. An adapter is added by peft and stays on the device.

Some models (fused experts, multimodal models) have other names for modules than for tensors in their files, and
transformers converts them. Those are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunewright.errors import UnsupportedFeature
from tunewright.evaluate.weights import Weights

_NAMED = 3
"""How many names of tensors a message lists."""


@dataclass
class Unit:
    """Parameters that are loaded together: a decoder layer's, or another module's own.

    `empty` are the parameters on the meta device that the module has while it does not run.
    """

    module: nn.Module
    places: list[tuple[nn.Module, str, str]] = field(default_factory=list)
    empty: list[nn.Parameter] = field(default_factory=list)

    def load(self, weights: Weights, device: str, dtype: torch.dtype) -> None:
        """Load the weights. Raises UnsupportedFeature where a tensor's shape differs from that of the module."""
        for (module, attribute, name), empty in zip(self.places, self.empty, strict=True):
            tensor = weights.get(name, device)
            if tensor.shape != empty.shape:
                raise UnsupportedFeature(
                    f"{name} is {list(tensor.shape)} in the model's files, and {list(empty.shape)} in transformers",
                    code="export_unsupported",
                )
            module._parameters[attribute] = nn.Parameter(tensor.to(dtype), requires_grad=False)

    def free(self) -> None:
        for (module, attribute, _), empty in zip(self.places, self.empty, strict=True):
            module._parameters[attribute] = empty


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, with its buffers on the real one; `layers` and `others` are what to load."""

    model: PreTrainedModel
    layers: list[Unit]
    others: list[Unit]
    stack: nn.ModuleList
    """The decoder layers, which are the modules of `layers`."""
    prefix: str
    """The prefix of the names of the tensors in `stack`, such as "model.layers."."""


def streamed_model(
    folder: Path,
    *,
    weights: Weights,
    device: str,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
) -> PreTrainedModel | PeftModel:
    """The model in `folder`, ready to be called, with `adapter` where one is given.

    The values are taken from `weights`, only the config from `folder`. The model computes in `dtype`, an adapter as in
    peft: LoRA weights in float32, modules that it replaces in `dtype`. It cannot be trained, and every forward pass
    reads all weights. Raises UnsupportedFeature (code export_unsupported).
    """
    skeleton = build_skeleton(
        folder, weights=weights, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    model: PreTrainedModel | PeftModel = skeleton.model
    if adapter is not None:
        model = _adapted(skeleton, adapter, device, dtype)
    # After peft, so that its copies of modules have no hooks. A tuner's layer may need the weights of its base layer at
    # any time while it runs, as DoRA does.
    inside = {
        id(module.get_base_layer()): module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
    }
    for unit in (*skeleton.layers, *skeleton.others):
        attach(unit, inside.get(id(unit.module), unit.module), weights, device, dtype)
    return model.eval()


def build_skeleton(
    folder: Path, *, weights: Weights, device: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> Skeleton:
    """Build the model. Raises UnsupportedFeature (code export_unsupported) where files and modules have other names."""
    options = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **options)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # the format of the files, which `weights` handles
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", **options)
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()
    prefix, stack = _layers(model)
    layers = [Unit(layer) for layer in stack]
    others = []
    unknown = []
    names = _Names(model, weights)
    for path, module in model.named_modules():
        own = [key for key, parameter in module._parameters.items() if parameter is not None]
        if not own:
            continue
        if path.startswith(prefix):
            unit = layers[int(path.removeprefix(prefix).partition(".")[0])]
        else:
            unit = Unit(module)
            others.append(unit)
        for key in own:
            name = names.of(f"{path}.{key}".removeprefix("."))
            if name is None:
                unknown.append(f"{path}.{key}")
            else:
                unit.places.append((module, key, name))
                unit.empty.append(module._parameters[key])
    if unknown:
        shown = ", ".join(sorted(unknown)[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
        raise UnsupportedFeature(
            f"the model's files have no {shown}: its tensors are named otherwise than the modules of transformers' "
            f"{type(model).__name__}, as experts' and multimodal models' are",
            code="export_unsupported",
        )
    _fill_buffers(model, names, weights, device)
    return Skeleton(model=model, layers=layers, others=others, stack=stack, prefix=prefix)


class _Names:
    """Maps a model's parameters to the names that they have in its files."""

    def __init__(self, model: PreTrainedModel, weights: Weights) -> None:
        self._weights = weights
        self._prefix = f"{model.base_model_prefix}."
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))

    def of(self, name: str) -> str | None:
        """The name in the files: the same, or without the model's prefix (GPT-2's files lack it), or that of a tied
        parameter. None where there is none."""
        tied = [other for other, value in self._parameters.items() if value is self._parameters.get(name)]
        for wanted in (name, *tied):
            for spelt in (wanted, wanted.removeprefix(self._prefix)):
                if spelt in self._weights:
                    return spelt
        return None


def _layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        (f"{path}.", module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not stacks:
        raise UnsupportedFeature(
            f"{type(model).__name__} has no list of {count} decoder layers", code="export_unsupported"
        )
    return stacks[0]


def _fill_buffers(model: PreTrainedModel, names: _Names, weights: Weights, device: str) -> None:
    """Load the buffers. Those that no file has, such as rotary frequencies, keep the values of the model's code."""
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is None:
                continue
            name = names.of(f"{path}.{key}") if key not in module._non_persistent_buffers_set else None
            module._buffers[key] = (
                buffer.to(device) if name is None else weights.get(name, device).to(buffer.dtype)
            )


def _adapted(skeleton: Skeleton, adapter: Path, device: str, dtype: torch.dtype) -> PeftModel:
    base = {id(parameter) for unit in (*skeleton.layers, *skeleton.others) for parameter in unit.empty}
    with _adapters_stay():
        model = PeftModel.from_pretrained(
            skeleton.model, adapter, torch_device=device, low_cpu_mem_usage=True
        )
    replaced = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for parameter in module.modules_to_save.parameters()
    }
    for name, owner, key, parameter in _parameters(model):
        if id(parameter) in base:
            continue
        if parameter.is_meta:
            raise UnsupportedFeature(f"the adapter's files have no {name}", code="export_unsupported")
        # As in peft, which copies saved modules into copies of the base's. LoRA weights are in float32 already.
        value = parameter.to(device, dtype if id(parameter) in replaced else parameter.dtype)
        owner._parameters[key] = nn.Parameter(value, requires_grad=False)
    return model


@contextmanager
def _adapters_stay() -> Iterator[None]:
    """Keep peft from moving adapters to the device of the base, which is the meta device here.

    peft does so also after loading (set_peft_model_state_dict).
    """
    name = "_move_adapter_to_device_of_base_layer"
    moves = getattr(BaseTunerLayer, name)
    setattr(BaseTunerLayer, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(BaseTunerLayer, name, moves)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for path, module in list(model.named_modules()):
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield f"{path}.{key}", module, key, parameter


def attach(unit: Unit, around: nn.Module, weights: Weights, device: str, dtype: torch.dtype) -> None:
    """Load the unit while `around` runs, which is its own module or one that contains it."""

    def before(_module: nn.Module, _arguments: Any) -> None:
        unit.load(weights, device, dtype)

    def after(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        unit.free()

    around.register_forward_pre_hook(before)
    around.register_forward_hook(after, always_call=True)  # also where the run fails
