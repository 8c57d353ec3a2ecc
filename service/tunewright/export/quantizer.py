"""The interface of a quantization library, and its calibration text. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

BLOCK = 512
"""Tokens in a block of calibration text, as in AutoAWQ."""


@dataclass(frozen=True)
class QuantizeOptions:
    """`group_size`: how many input channels share a scale and a zero point; `registry.awq_check` has accepted it."""

    group_size: int = 128
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing.

    `reused` counts the layers that an earlier, interrupted run had finished, `tokens` those of the calibration text;
    `bytes` is the size of the weights' files.
    """

    layers: int
    reused: int
    tokens: int
    bytes: int
    seconds: float
    versions: dict[str, str]


class Quantizer(Protocol):
    """A way to quantize.

    `quantize` may be killed at any time and called again with the same arguments: it then resumes from the files that
    it keeps in `work`, and writes the same bytes.
    """

    name: str

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
        """Quantize the 16-bit model in the folder `model` into the new folder `out`, which is published as a whole.

        `rows` are blocks of token ids as `pack` makes them. `on_layer` is called with the number of layers done and of
        all. `work` is a folder for this call alone, which the caller removes.
        """
        ...


def pack(rows: Iterable[list[int]], *, length: int = BLOCK, total: int | None = None) -> list[list[int]]:
    """Concatenate rows of token ids and cut them into at most `total` blocks of `length` tokens.

    AutoAWQ's function (get_calib_dataset) drops each row of more than 512 tokens, and fails where none is left. Here
    long rows are cut and short ones joined; an incomplete last block is dropped, unless it is the only one. Raises
    ValueError where there is no token.
    """
    blocks: list[list[int]] = []
    block: list[int] = []
    for token in chain.from_iterable(rows):
        block.append(token)
        if len(block) == length:
            blocks.append(block)
            block = []
            if len(blocks) == total:
                break
    if not blocks:
        if not block:
            raise ValueError("there is no token to calibrate with")
        blocks.append(block)
    return blocks
