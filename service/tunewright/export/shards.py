"""A model's weights put together from tensors in other files, byte by byte: no tensor is held in memory. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.registry.safetensors_file import read_header

SHARD = 5 * 10**9
"""Bytes of a file at most, as transformers and AutoAWQ write them; a tensor alone may have more."""
_BLOCK = 1 << 24


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
    """The tensors of a safetensors file, in the order in which they lie. Raises BadTensors and OSError."""
    with file.open("rb") as opened:
        header, begin = read_header(opened)
    for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        start, end = entry["data_offsets"]
        yield Piece(name, entry["dtype"], entry["shape"], file, begin + start, begin + end)


def write_shards(folder: Path, tensors: list[Piece], *, limit: int = SHARD) -> int:
    """Write `model.safetensors`, or several with an index, of these tensors in this order. Returns their bytes."""
    shards: list[list[Piece]] = [[]]
    room = limit
    for piece in tensors:
        size = piece.end - piece.start
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(piece)
        room -= size
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(piece.end - piece.start for piece in tensors)},
            "weight_map": {
                piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard
            },
        }
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n"
        )
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard)
    return sum((folder / name).stat().st_size for name in names)


def _write(path: Path, shard: list[Piece]) -> None:
    shard = sorted(shard, key=_by_alignment)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in shard:
        end = at + piece.end - piece.start
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for piece in shard:
            with piece.file.open("rb") as source:
                source.seek(piece.start)
                left = piece.end - piece.start
                while left:
                    block = source.read(min(_BLOCK, left))
                    if not block:
                        raise EOFError(f"{piece.file} is cut off within {piece.name}")
                    left -= len(block)
                    target.write(block)


def _by_alignment(piece: Piece) -> tuple[int, str]:
    """As the safetensors library has them: wider numbers first, so that none lies across its own width."""
    return -((piece.end - piece.start) // max(math.prod(piece.shape), 1)), piece.name
