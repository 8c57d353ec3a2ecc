"""AutoAWQ's search and rounding for one decoder layer at a time. Imports torch and autoawq.

The algorithm and the knowledge of architectures are AutoAWQ's (0.2.9, MIT licence). Methods that are wrong on a CPU, or
need the whole model, are overridden. AutoAWQ is no longer maintained; importing it prints a warning about that and
enables deprecation warnings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    # A filter would not do, since AutoAWQ adds one that shows the warnings. The context restores the function.
    warnings.showwarning = lambda *_, **__: None
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.modules.linear import gemm
    from awq.quantize import quantizer, scale
    from awq.quantize.scale import apply_clip, apply_scale
    from awq.utils.module import get_named_linears

BITS = 4
_TOKENS_AT_ONCE = 2**13
"""Tokens of calibration text in one forward pass."""
_ROWS_AT_ONCE = 4096
"""Output channels whose clipping is searched together: 0.3 GB of temporary numbers where a layer has 19,000 inputs."""


class ScalingError(Exception):
    """Applying the scales changes the output of a layer: AutoAWQ does not know this architecture."""


class LayerQuantizer(quantizer.AwqQuantizer):  # type: ignore[misc]
    """Quantizes layers in turn. `inps` holds the calibration activations, [blocks, tokens, channels]."""

    def __init__(
        self, model_type: str, config: Any, group_size: int, inputs: torch.Tensor, device: str
    ) -> None:
        """Does not call AwqQuantizer.__init__, which loads a dataset and runs the whole model."""
        self.awq_model = SimpleNamespace(model_type=model_type)
        self.w_bit, self.group_size, self.zero_point, self.version = BITS, group_size, True, "gemm"
        self.duo_scaling = True
        self.n_parallel_calib_samples = max(1, _TOKENS_AT_ONCE // inputs.shape[1])
        self.max_chunk_memory = 2**30
        self.modules_to_not_convert: list[str] = []
        self.inps = inputs
        self.module_kwargs: dict[str, Any] = {}
        self._config = config
        self._device = device
        self._scaling = AWQ_CAUSAL_LM_MODEL_MAP[model_type].get_layers_for_scaling

    def skip(self, layer: nn.Module, arguments: dict[str, Any]) -> None:
        """Only pass the activations through a layer. `inps` is then, bit for bit, as after `quantize_layer`."""
        inputs = self.inps.to(self._device)
        self.inps = self._module_forward(inputs, layer, self._sanitize_kwargs(arguments, layer))

    def quantize_layer(self, layer: nn.Module, arguments: dict[str, Any]) -> None:
        """Replace the linear modules of the layer by packed ones, as AwqQuantizer.quantize does for each layer.

        The activations are passed through the layer as it was before. `arguments` are those of the layer, for a batch
        of one block.
        """
        first = self.inps[:1].to(self._device)
        self.module_kwargs = arguments
        linears = get_named_linears(layer)
        with torch.no_grad(), _everything_on(self._device):
            features = self._get_input_feat(layer, linears)
            scaled = [
                entry for entry in self._scaling(layer, features, arguments) if self._is_right(layer, entry)
            ]
            scales = [self._search_best_scale(layer, **entry) for entry in scaled]
            apply_scale(layer, scales, input_feat_dict=features)
            layer.to(self._device)
            self._check(layer, first)
            apply_clip(layer, self._search_best_clip(layer, linears, features))
            self._apply_quant(layer, linears)

    def _is_right(self, layer: nn.Module, entry: dict[str, Any]) -> bool:
        """Whether AutoAWQ's entry for scaling fits the layer.

        phi3.py scales the last rows of qkv_proj for o_proj, which are the values alone only where there are as many
        key and value heads as heads. With fewer (Phi-4-mini) they include keys and queries. llama.py compares shapes.
        """
        if self.awq_model.model_type != "phi3" or entry["layers"][0] is not layer.self_attn.o_proj:
            return True
        return bool(self._config.num_key_value_heads == self._config.num_attention_heads)

    def _check(self, layer: nn.Module, inputs: torch.Tensor) -> None:
        """Raise ScalingError where moving scales from one module to the next has changed the output of the layer.

        AutoAWQ relies on its knowledge of the architecture; where a newer transformers arranges modules otherwise, the
        results would be silently wrong. In 16 bits the part of the output that the layer adds to its input is measured
        less exactly, hence the larger bound.
        """
        got = self._module_forward(inputs, layer, self._sanitize_kwargs(self.module_kwargs, layer))
        before = self.inps[:1].to(got.device).float()
        change = (got.float() - before).norm(dim=-1)
        own = (before - inputs.to(got.device).float()).norm(dim=-1)
        error = (change / own.clamp(min=1e-12)).median().item()
        if not error < (0.01 if inputs.dtype == torch.float32 else 0.25):
            raise ScalingError(
                f"{type(layer).__name__} computes something else once scales are moved between its modules (by "
                f"{error:.1%}): AutoAWQ does not know its architecture"
            )

    def _compute_best_scale(
        self,
        x: torch.Tensor,
        w_mean: torch.Tensor,
        x_mean: torch.Tensor,
        module2inspect: nn.Module,
        linears2scale: list[nn.Linear],
        fp16_output: torch.Tensor,
        kwargs: dict[str, Any] = {},  # noqa: B006 (AutoAWQ's signature; it is read only)
    ) -> torch.Tensor:
        """AutoAWQ's search, with a real copy of the weights.

        AutoAWQ saves the weights that it restores after each ratio by `.cpu()`, which copies from a GPU but returns the
        tensor itself on a CPU: there each ratio would be tried on weights that the ratios before have changed.
        """
        stored = module2inspect.state_dict

        def copied() -> dict[str, torch.Tensor]:
            return {name: tensor.detach().clone() for name, tensor in stored().items()}

        module2inspect.state_dict = copied
        try:
            best: torch.Tensor = super()._compute_best_scale(
                x, w_mean, x_mean, module2inspect, linears2scale, fp16_output, kwargs
            )
        finally:
            del module2inspect.state_dict
        return best

    def _compute_best_clip(
        self,
        w: torch.Tensor,
        input_feat: torch.Tensor,
        n_grid: int = 20,
        max_shrink: float = 0.5,
        n_sample_token: int = 512,
    ) -> torch.Tensor:
        """The bound with the least mean square error of the outputs, for each row and group: [out, groups, 1].

        It tries the same bounds as AutoAWQ, which multiplies all inputs with all weights for each of them. But the
        error of a change d is d' G d, where G [groups, size, size] is the second moment of the inputs, computed once
        in float32.
        """
        size = self.group_size
        inputs = input_feat.reshape(-1, input_feat.shape[-1])
        inputs = inputs[:: max(1, len(inputs) // n_sample_token)].to(w.device, torch.float32)
        inputs = inputs.reshape(len(inputs), -1, size).transpose(0, 1)
        moments = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
        found = []
        for rows in w.reshape(w.shape[0], -1, size).split(_ROWS_AT_ONCE):
            largest = rows.abs().amax(-1, keepdim=True)
            best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
            for step in range(int(max_shrink * n_grid)):
                bound = largest * (1 - step / n_grid)
                rounded = self.pseudo_quantize_tensor(rows.clamp(-bound, bound))[0]
                change = (rounded - rows).float().transpose(0, 1)
                error = ((change @ moments) * change).sum(-1).T.unsqueeze(-1)
                better = error < least
                least, best = torch.where(better, error, least), torch.where(better, bound, best)
            found.append(best)
        return torch.cat(found)


@contextmanager
def _everything_on(device: str) -> Iterator[None]:
    """Have AutoAWQ compute on `device`; otherwise it uses the first GPU (get_best_device)."""
    modules = (quantizer, scale, gemm)
    functions = [module.get_best_device for module in modules]
    for module in modules:
        module.get_best_device = lambda: device
    try:
        yield
    finally:
        for module, function in zip(modules, functions, strict=True):
            module.get_best_device = function
