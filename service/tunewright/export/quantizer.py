"""What a quantization library must offer, and the calibration text that it is given. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

BLOCK = 512
"""Tokens of a block of calibration text, as AutoAWQ has them."""


@dataclass(frozen=True)
class QuantizeOptions:
    """`group_size`: input channels that share a scale and a zero point; one that `registry.awq_check` has taken."""

    group_size: int = 128
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Quantized:
    """What was made. `reused` are layers that an earlier, interrupted run had finished; `tokens` those of the
    calibration text; `bytes` the weights' files."""

    layers: int
    reused: int
    tokens: int
    bytes: int
    seconds: float
    versions: dict[str, str]


class Quantizer(Protocol):
    """One way to quantize. `quantize` can be killed at any time and be called again with the same arguments: it goes on
    where it was, by what it keeps in `work`, and makes the same bytes."""

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
        """Quantize the 16-bit model in the folder `model` into the new folder `out`, which appears whole or not at all.

        `rows` are blocks of token ids as `pack` makes them; `on_layer` is told how many layers are done, and of how
        many. `work` is a folder of this call's own, which the caller removes.
        """
        ...


def pack(rows: Iterable[list[int]], *, length: int = BLOCK, total: int | None = None) -> list[list[int]]:
    """Rows of token ids one after another, cut into blocks of `length` tokens, at most `total` of them.

    AutoAWQ's own (get_calib_dataset) drops each row of more than 512 tokens, and fails where none is left. Here long
    rows are cut and short ones joined; what does not fill a last block is dropped, unless it is all there is. Raises
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
