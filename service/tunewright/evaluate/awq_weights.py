"""Dequantizes the tensors of a folder that AWQ quantized: W = (q - z) * s. Imports torch.

Implements the format without a quantization library, so that it can check one: four-bit numbers, eight in each
int32 along the output's dimension, in the order 0 2 4 6 1 3 5 7 (AutoAWQ's GEMM layout); `qweight` [in, out / 8],
`qzeros` [in / group, out / 8], `scales` [in / group, out] in float16.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunewright.errors import UnsupportedFeature
from tunewright.evaluate.streamed import build_skeleton
from tunewright.evaluate.weights import SafetensorsWeights

_BITS = 4
_PER_INTEGER = 32 // _BITS
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring numbers is at each place of an integer, from the lowest bits up."""


class AwqWeights:
    """The tensors of a quantized folder under their original names: `X.weight` instead of `X.qweight`."""

    def __init__(self, folder: Path, *, scales: torch.dtype | None = None) -> None:
        """`scales`: the dtype to which scales are rounded first, as vLLM does in bfloat16; None: not rounded.

        Raises OSError, and UnsupportedFeature where the folder has another format.
        """
        config = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
        found = {key: config.get(key) for key in ("quant_method", "bits", "zero_point", "version")}
        if found != {"quant_method": "awq", "bits": _BITS, "zero_point": True, "version": "gemm"}:
            raise UnsupportedFeature(
                f"{folder.name} is not quantized by AWQ with 4 bits, zero points and the GEMM layout: {found}",
                code="export_unsupported",
            )
        self._scales = scales
        self._stored = SafetensorsWeights(folder)

    def get(self, name: str, device: str) -> torch.Tensor:
        """The tensor: a dequantized one in float32, in which it is exact; another as stored. Raises KeyError."""
        if name in self._stored:
            return self._stored.get(name, device)
        if name not in self:
            raise KeyError(name)
        module = name.removesuffix(".weight")
        parts = (self._stored.get(f"{module}.{part}", device) for part in ("qweight", "qzeros", "scales"))
        return dequantize(*parts, rounded=self._scales)

    def __contains__(self, name: object) -> bool:
        if name in self._stored:
            return True
        return isinstance(name, str) and name.endswith(".weight") and self._packed(name) in self._stored

    def names(self) -> list[str]:
        """The names of all tensors before quantization."""
        ends = (".qweight", ".qzeros", ".scales")
        return sorted(
            f"{name.removesuffix('.qweight')}.weight" if name.endswith(".qweight") else name
            for name in self._stored.names()
            if not name.endswith(ends[1:]) or self._packed(name) not in self._stored
        )

    @staticmethod
    def _packed(name: str) -> str:
        return f"{name.rpartition('.')[0]}.qweight"


def dequantize(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, *, rounded: torch.dtype | None = None
) -> torch.Tensor:
    """The weight [out, in] in float32, with scales rounded to `rounded` first where that is given.

    Nothing else is rounded: a product of 4 bits and float16's 11 fits in float32's 24.
    """
    groups = scales.shape[0]
    numbers = unpack(qweight) - unpack(qzeros).repeat_interleave(qweight.shape[0] // groups, 0)
    if rounded is not None:
        scales = scales.to(rounded)
    return (numbers * scales.float().repeat_interleave(qweight.shape[0] // groups, 0)).T.contiguous()


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Unpack [n, m] in int32 to [n, 8 m] in int8, with values from 0 to 15."""
    places = torch.tensor([_ORDER.index(place) for place in range(_PER_INTEGER)], device=packed.device)
    return ((packed[:, :, None] >> (places * _BITS)) & (2**_BITS - 1)).to(torch.int8).flatten(1)


def load_dequantized(
    folder: Path, *, dtype: torch.dtype, device: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The quantized model as a plain model of transformers in `dtype`, to which peft can add adapters.

    Raises UnsupportedFeature, also for models that cannot be streamed (see `streamed`).
    """
    weights = AwqWeights(folder)
    skeleton = build_skeleton(
        folder, weights=weights, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    for unit in (*skeleton.layers, *skeleton.others):
        unit.load(weights, device, dtype)
    skeleton.model.tie_weights()
    return skeleton.model
