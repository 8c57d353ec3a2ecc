"""AWQ's numbers as they are meant, W = (q - z) * s, from the tensors that a quantized folder has. Imports torch.

Written from the format and not with a quantization library, so that it can judge one: four-bit numbers, eight in each
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
"""Which of eight neighbours lies at each place of an integer, from the lowest bits up."""


class AwqWeights:
    """A quantized folder's tensors under the names that they had before: `X.weight` instead of `X.qweight`."""

    def __init__(self, folder: Path, *, scales: torch.dtype | None = None) -> None:
        """`scales`: the dtype that scales are rounded to first, as vLLM does with those of a model that it runs in
        bfloat16; as stored where there is none. Raises OSError, and UnsupportedFeature where the folder's format is
        another one."""
        config = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
        told = {key: config.get(key) for key in ("quant_method", "bits", "zero_point", "version")}
        if told != {"quant_method": "awq", "bits": _BITS, "zero_point": True, "version": "gemm"}:
            raise UnsupportedFeature(
                f"{folder.name} is not quantized by AWQ with 4 bits, zero points and the GEMM layout: {told}",
                code="export_unsupported",
            )
        self._scales = scales
        self._stored = SafetensorsWeights(folder)

    def get(self, name: str, device: str) -> torch.Tensor:
        """Dequantized ones in float32, in which the product is exact; others as they are stored. Raises KeyError."""
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
        """Of all tensors, as they were before quantization."""
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
    """[out, in] in float32. Four bits times float16's eleven fit in float32's 24: nothing is rounded, but the scales to
    `rounded` first where it is given."""
    groups = scales.shape[0]
    numbers = unpack(qweight) - unpack(qzeros).repeat_interleave(qweight.shape[0] // groups, 0)
    if rounded is not None:
        scales = scales.to(rounded)
    return (numbers * scales.float().repeat_interleave(qweight.shape[0] // groups, 0)).T.contiguous()


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """[n, m] in int32 to [n, 8 m] in int8, of 0 to 15."""
    places = torch.tensor([_ORDER.index(place) for place in range(_PER_INTEGER)], device=packed.device)
    return ((packed[:, :, None] >> (places * _BITS)) & (2**_BITS - 1)).to(torch.int8).flatten(1)


def load_dequantized(
    folder: Path, *, dtype: torch.dtype, device: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The quantized model whole, as transformers' plain one: for peft to put adapters on. Rounded once, to `dtype`.

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
