"""Safetensors files, read as bytes: the weight files of a folder, the place of each tensor, and whether its numbers are
finite. No torch; numpy where numbers are checked.

A file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, offsets), and the
tensors without gaps between them (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

INDEX = "model.safetensors.index.json"
"""Names the file of each tensor, where a model's weights are in several."""
LARGEST_HEADER = 32 * 2**20
"""Most bytes of a header. An adapter of 50,000 tensors has 8 MB; the format allows headers that take gigabytes."""
FLOATS = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a number by type, in the order in which the safetensors library writes the types."""
_EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
"""The bits of the exponent. A number is NaN or infinite where all of them are set."""
_BLOCK = 1 << 20
_LONGEST_NAME, _MOST_DIMENSIONS, _LARGEST_NUMBER = 1024, 16, 2**50
"""Bounds of what a header may say of a tensor: Python's integers have no limit, and products of giant ones take
minutes."""


class BadTensors(Exception):
    """The file is not a valid safetensors file or index; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file. `start` and `end` are bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class ChangedTensor(Tensor):
    """A matrix that is written otherwise than it is in the file. `dtype` and `shape` are those that are written; a
    shape that is larger than the source's is filled with zeros."""

    source: Tensor
    is_transposed: bool = False
    factor: float = 1.0
    """What the numbers are multiplied by. Others than 1 are written as F32."""


def change(
    tensor: Tensor,
    *,
    name: str | None = None,
    transpose: bool = False,
    factor: float = 1.0,
    shape: tuple[int, ...] | None = None,
) -> ChangedTensor:
    """The tensor with another name, transposed, multiplied, or filled up to `shape` with zeros at its ends."""
    before = tensor if isinstance(tensor, ChangedTensor) else None
    return ChangedTensor(
        name=name or tensor.name,
        dtype=tensor.dtype if factor == 1 else "F32",
        shape=shape or (tensor.shape[::-1] if transpose else tensor.shape),
        start=tensor.start,
        end=tensor.end,
        source=before.source if before else tensor,
        is_transposed=transpose != (before.is_transposed if before else False),
        factor=factor * (before.factor if before else 1.0),
    )


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The unchecked header without its metadata, and where the tensors begin. Raises BadTensors."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise BadTensors(f"it is cut off, or no safetensors file: {size} bytes, with a header of {length}")
    if length > LARGEST_HEADER:
        raise BadTensors(f"its header has {length} bytes; {LARGEST_HEADER} are the most")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadTensors(f"its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise BadTensors("its header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def read_tensors(file: BinaryIO) -> list[Tensor]:
    """The tensors of a file, in the order of their offsets.

    Raises BadTensors, also for gaps, overlaps or a rest, and for numbers other than F32, BF16 and F16.
    """
    header, start = read_header(file)
    tensors = sorted(
        (_tensor(name, entry, start) for name, entry in header.items()), key=lambda t: (t.start, t.end)
    )
    at = start
    for tensor in tensors:
        if tensor.start != at:
            raise BadTensors(f"{tensor.name} begins at byte {tensor.start}, where byte {at} was expected")
        at = tensor.end
    size = file.seek(0, 2)
    if at != size:
        what = "cut off" if at > size else "followed by what is no tensor"
        raise BadTensors(f"it is {what}: its tensors end at byte {at}, the file at byte {size}")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: `model.safetensors`, else those that the index names, else all
    `*.safetensors`; sorted by name.

    Raises FileNotFoundError where there is none or one of the index is missing, BadTensors where the index is faulty,
    and OSError.
    """
    # The order is that of transformers (`_get_resolved_checkpoint_files`), which trains and measures adapters. vLLM
    # (`filter_duplicate_safetensors_files`) takes the files of the index where there is one, else all. The two
    # differ where model.safetensors lies beside an index of other files (vLLM takes the index's), beside shards without
    # an index (vLLM reads them too), and where there are only shards without an index (transformers loads nothing).
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        return _indexed(index)
    if files := sorted(folder.glob("*.safetensors")):
        return files
    raise FileNotFoundError(
        "it has no *.safetensors weights (pickled ones are never loaded): save it anew with `save_pretrained`"
    )


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadTensors(f"its {index.name} cannot be read: {error!r}") from error
    if not files:
        raise BadTensors(f"its {index.name} names no files")
    for name, file in zip(names, files, strict=True):
        if file.parent != index.parent or not file.is_file():
            raise FileNotFoundError(f"its {index.name} names {name}, which does not exist")
    return files


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a model folder, from the headers. Raises as `weight_files`."""
    return {name: path for path, header in _headers(folder) for name in header}


def read_shapes(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor in a model folder, from the headers. Raises as `weight_files`."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, header in _headers(folder):
        try:
            shapes |= {name: (str(e["dtype"]), tuple(e["shape"])) for name, e in header.items()}
        except (TypeError, KeyError) as error:
            raise BadTensors(f"the header of {path} is faulty: {error!r}") from error
    return shapes


def _headers(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in weight_files(folder):
        with path.open("rb") as file:
            header, _ = read_header(file)
        yield path, header


def read_finite(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """The tensor's bytes, block by block. Raises BadTensors at a NaN or an infinity, or where the file ends."""
    file.seek(tensor.start)
    left = tensor.end - tensor.start
    while left:
        block = file.read(min(_BLOCK, left))
        if not block:
            raise BadTensors(f"it is cut off within {tensor.name}")
        left -= len(block)
        if not _is_finite(block, tensor.dtype):
            raise BadTensors(f"{tensor.name} has numbers that are NaN or infinite")
        yield block


def header_of(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """The header, with its length, of a file of these tensors (name, dtype, shape, bytes) in this order.

    It is padded to 8 bytes, as the safetensors library does.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(target: BinaryIO, source: BinaryIO, tensors: Iterable[Tensor]) -> None:
    """Write a file of these tensors of `source`, byte for byte as the safetensors library and peft do. Those that are
    changed are in memory one at a time.

    The same tensors make the same file, whatever order and metadata the source had. Raises as `read_finite`.
    """
    order = list(FLOATS)
    arranged = sorted(tensors, key=lambda t: (order.index(t.dtype), t.name))
    sizes = ((t.name, t.dtype, t.shape, math.prod(t.shape) * FLOATS[t.dtype]) for t in arranged)
    target.write(header_of(sizes))
    for tensor in arranged:
        if isinstance(tensor, ChangedTensor):
            target.write(_changed(source, tensor))
            continue
        for block in read_finite(source, tensor):
            target.write(block)


def _changed(file: BinaryIO, tensor: ChangedTensor) -> bytes:
    import numpy as np  # here, as in `_is_finite`

    source = tensor.source
    content = b"".join(read_finite(file, source))
    numbers = np.frombuffer(content, dtype=f"<u{FLOATS[source.dtype]}").reshape(source.shape)
    numbers = numbers.T if tensor.is_transposed else numbers
    if tensor.factor != 1:
        if source.dtype == "BF16":
            values = (numbers.astype("<u4") << 16).view("<f4")
        else:
            values = np.ascontiguousarray(numbers).view({"F16": "<f2", "F32": "<f4"}[source.dtype])
        with np.errstate(over="ignore"):
            numbers = (values.astype("<f4") * np.float32(tensor.factor)).view("<u4")
    if numbers.shape != tensor.shape:
        filled = np.zeros(tensor.shape, dtype=numbers.dtype)
        filled[tuple(slice(size) for size in numbers.shape)] = numbers
        numbers = filled
    changed = numbers.tobytes()
    if not _is_finite(changed, tensor.dtype):
        raise BadTensors(f"{tensor.name} overflows where it is multiplied by its scaling")
    return changed


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = (
            isinstance(dtype, str)
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(number) is int and 0 <= number < _LARGEST_NUMBER for number in (*shape, begin, end))
        )
        name.encode()  # half of a surrogate pair is no text
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or len(name) > _LONGEST_NAME:
        raise BadTensors(
            f"its header describes {name[:200]!a} wrongly: `dtype` is a text, `shape` a list of sizes, and "
            "`data_offsets` has where the tensor begins and ends"
        )
    if dtype not in FLOATS:
        raise BadTensors(f"{name} has numbers of type {str(dtype)[:20]}: save it as F32, BF16 or F16")
    if end - begin != math.prod(shape) * FLOATS[dtype]:
        raise BadTensors(f"{name} has {end - begin} bytes, which are not {shape} numbers of type {dtype}")
    return Tensor(name, dtype, tuple(shape), start + begin, start + end)


def _is_finite(block: bytes, dtype: str) -> bool:
    """Whether no number has all bits of its exponent set. Numbers are read as integers, since numpy has no bfloat16."""
    import numpy as np  # here, so that reading headers does not import it

    width, exponent = FLOATS[dtype], _EXPONENT[dtype]
    numbers = np.frombuffer(block, dtype=f"<u{width}", count=len(block) // width)
    return not numbers.size or int((numbers & exponent).max()) != exponent


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is in it twice")
    return found
