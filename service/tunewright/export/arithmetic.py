"""Computes the tensors of a merged model block by block; at most one tensor is in memory, never the model.

The results equal, bit for bit, those of peft for a float32 copy of the base (`merge_and_unload`, then one cast to
bfloat16): float32 throughout, in peft's order of operations, and rounded once. peft holds the weights of adapters in
float32, whatever the type of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tunewright.errors import InvalidAdapter
from tunewright.registry.base_tensors import Stored
from tunewright.registry.mergeable import AddedBias, LowRank, Output, Rows
from tunewright.registry.safetensors_file import FLOATS

Tensor = Any  # torch has no types here
BLOCK_BYTES = 4 * 2**20
"""Bytes of the base's tensor that are read and written at a time."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read(stored: Stored, first: int = 0, last: int | None = None) -> Tensor:
    """The tensor in float32, or its rows from `first` up to `last`.

    It is a copy with torch's own alignment, on which the last bit of a product may depend.
    """
    tensor = stored.tensor
    row = math.prod(tensor.shape[1:]) * FLOATS[tensor.dtype]
    rows = tensor.shape[0] if tensor.shape else 1
    last = rows if last is None else min(last, rows)
    if not tensor.shape:
        row = FLOATS[tensor.dtype]
    content = bytearray((last - first) * row)
    with stored.file.open("rb") as file:
        file.seek(tensor.start + first * row)
        if file.readinto(content) != len(content):
            raise OSError(f"{stored.file} is cut off within {tensor.name}")
    if not content:
        return torch.empty(tensor.shape, dtype=torch.float32)
    found = torch.frombuffer(content, dtype=_DTYPES[tensor.dtype]).to(torch.float32, copy=True)
    return found.reshape((last - first, *tensor.shape[1:]) if tensor.shape else ())


def same_numbers(one: Stored, other: Stored) -> bool:
    """Whether two tensors have the same numbers, whatever their types."""
    if one.shape != other.shape:
        return False
    return all(
        torch.equal(block, read(other, first, first + len(block) if one.shape else None))
        for first, block in _stored_blocks(one)
    )


def low_rank_delta(change: LowRank) -> Tensor:
    """scaling * B A in float32, in the layout of the base's weight."""
    delta = read(change.b) @ read(change.a)
    return (delta if change.kind == "linear" else delta.T).mul_(change.scaling)


def blocks(output: Output) -> Iterator[bytes]:
    """The bytes of the tensor in the merged model, in bfloat16.

    Raises InvalidAdapter where merging results in NaN or infinite numbers, and OSError.
    """
    change = output.change
    if isinstance(change, LowRank):
        merged = _dora(output, change) if change.magnitude is not None else _lora(output, change)
    elif isinstance(change, AddedBias):
        merged = iter([read(output.source) + read(change.bias) * change.scaling])
    elif isinstance(change, Rows):
        merged = _rows(output, change)
    else:
        merged = (block for _, block in _stored_blocks(output.source))
    for block in merged:
        yield _rounded(output.name, block)


def _stored_blocks(stored: Stored) -> Iterator[tuple[int, Tensor]]:
    """Blocks of a tensor in float32, as (first row, rows)."""
    tensor = stored.tensor
    if not tensor.shape or 0 in tensor.shape:
        yield 0, read(stored)
        return
    step = max(1, BLOCK_BYTES // (math.prod(tensor.shape[1:]) * FLOATS[tensor.dtype]))
    for first in range(0, tensor.shape[0], step):
        yield first, read(stored, first, first + step)


def _lora(output: Output, change: LowRank) -> Iterator[Tensor]:
    delta = low_rank_delta(change)
    for first, block in _stored_blocks(output.source):
        yield block.add_(delta[first : first + len(block)])


def _dora(output: Output, change: LowRank) -> Iterator[Tensor]:
    """The same as peft's `DoraLinearVariant.merge_safe` (arXiv:2402.09353, section 4.3).

    The norm is taken over the inputs of each output, for an embedding over the vocabulary. Operands keep peft's
    strides, on which the last bit of a sum depends.
    """
    assert change.magnitude is not None
    delta, weight, magnitude = low_rank_delta(change), read(output.source), read(change.magnitude)
    if change.kind == "linear":
        factor = (magnitude / torch.linalg.norm(weight + delta, dim=1)).view(-1, 1)
    else:
        factor = (magnitude / torch.linalg.norm(weight.T + delta.T, dim=1)).view(1, -1)
    yield factor * weight.add_(delta)


def _rows(output: Output, change: Rows) -> Iterator[Tensor]:
    values = read(change.values)
    for first, block in _stored_blocks(output.source):
        for at, index in enumerate(change.indices):
            if first <= index < first + len(block):
                block[index - first] = values[at]
        yield block


def _rounded(name: str, block: Tensor) -> bytes:
    if not bool(torch.isfinite(block).all()):
        raise InvalidAdapter(
            f"Merged, {name} has numbers that are NaN or infinite: the adapter or its base is broken."
        )
    rounded = block.to(torch.bfloat16).contiguous()
    content: bytes = rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
    return content
