"""The files of a model's weights: distributing tensors among them, and writing them from tensors in other files.

Tensors are copied in blocks and never held in memory. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tunewright.registry.safetensors_file import INDEX, header_of, read_header

SHARD_BYTES = 5 * 10**9
"""The largest file in bytes, as transformers and AutoAWQ write them; a single tensor may be larger."""
_BLOCK = 1 << 24
Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """A tensor in a file; `start` and `end` are bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: list[int]
    file: Path
    start: int
    end: int


def pieces(file: Path) -> Iterator[Piece]:
    """The tensors of a safetensors file, in the order of their offsets. Raises BadTensors and OSError."""
    with file.open("rb") as opened:
        header, begin = read_header(opened)
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        start, end = entry["data_offsets"]
        yield Piece(name, entry["dtype"], entry["shape"], file, begin + start, begin + end)


def write_shards(folder: Path, tensors: list[Piece], *, limit: int = SHARD_BYTES) -> int:
    """Write the tensors in their order to `model.safetensors`, or to several files with an index. Returns the bytes."""
    shards = split(tensors, _size, limit)
    names = shard_names(len(shards))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_size, tensors))},
            "weight_map": {
                piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard)
    return sum((folder / name).stat().st_size for name in names)


def split(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> list[list[Item]]:
    """Split the items, in their order, into groups of at most `limit` bytes, or of one item."""
    groups: list[list[Item]] = [[]]
    taken = 0
    for item in items:
        if groups[-1] and taken + size(item) > limit:
            groups.append([])
            taken = 0
        groups[-1].append(item)
        taken += size(item)
    return groups


def shard_names(count: int) -> list[str]:
    """The names of a model's weight files, as transformers writes them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{at:05d}-of-{count:05d}.safetensors" for at in range(1, count + 1)]


def _size(piece: Piece) -> int:
    return piece.end - piece.start


def _write(path: Path, shard: list[Piece]) -> None:
    shard = sorted(shard, key=_by_alignment)
    with path.open("wb") as target:
        target.write(header_of((p.name, p.dtype, p.shape, _size(p)) for p in shard))
        for piece in shard:
            with piece.file.open("rb") as source:
                source.seek(piece.start)
                left = _size(piece)
                while left:
                    block = source.read(min(_BLOCK, left))
                    if not block:
                        raise EOFError(f"{piece.file} is cut off within {piece.name}")
                    left -= len(block)
                    target.write(block)


def _by_alignment(piece: Piece) -> tuple[int, str]:
    """A sort key that puts wider numbers first, as the safetensors library does, so that every number is aligned."""
    return -(_size(piece) // max(math.prod(piece.shape), 1)), piece.name
