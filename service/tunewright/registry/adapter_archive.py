"""Unpacks the two files of an adapter's folder from an uploaded archive, and nothing else.

Archives are not trusted: names, sizes and types of members are checked while the archive is read, and the unpacked
bytes are counted. Only files of three fixed names are written, into the given folder.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tunewright.errors import InvalidAdapter, TooLarge, quoted
from tunewright.registry.adapter_check import CONFIG_FILE, MLX_WEIGHTS_FILE, WEIGHTS_FILE, pickled
from tunewright.registry.adapter_config import LARGEST_CONFIG

MOST_MEMBERS = 1000
"""A PEFT folder with a tokenizer and a trainer's state has about twenty, and a run has one for each checkpoint."""
_DEEPEST = 4
"""Most folders around an adapter."""
_LARGEST_HEADERS = 32 * 2**10
"""Most bytes in a tar between the contents of two members."""
_LARGEST_READ = 2**20
"""Most bytes that the zip library may read at once; its table of contents is the largest part."""
_BLOCK = 2**16
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError, ValueError,
    IndexError, NotImplementedError, RecursionError, OverflowError,
)  # fmt: skip
"""Exceptions of the libraries for archives that are truncated, damaged or malicious."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_Member = tuple[str, Callable[[], BinaryIO] | None]
"""A member's name in the archive and how to open its content; None for a folder."""


def unpack(archive: BinaryIO, into: Path, largest: int, folder: str | None = None) -> None:
    """Write the archive's `adapter_config.json` and `adapter_model.safetensors` (of MLX `adapters.safetensors`) to
    `into`.

    They are those of the highest folder that has both, or of the one whose name ends in `folder`; other files are
    ignored. `largest` is the limit of unpacked bytes. Raises InvalidAdapter, TooLarge, and OSError where the disk is
    full.
    """
    archive.seek(0)
    start = archive.read(512)
    archive.seek(0)
    try:
        if start.startswith(b"PK\x03\x04"):
            members = _zip(archive)
        elif start.startswith(b"\x1f\x8b"):
            members = _tar(cast(BinaryIO, gzip.GzipFile(fileobj=archive, mode="rb")), largest)
        elif _is_tar(start):
            members = _tar(archive, largest)
        else:
            raise InvalidAdapter(
                "The file is neither .tar, .tar.gz nor .zip: pack the adapter's folder as one of these, or send its "
                f"two files, {CONFIG_FILE} and {WEIGHTS_FILE}.",
                code="archive_refused",
            )
        _take(members, into, largest, folder)
    except _BROKEN as error:
        why = str(error).rstrip(".")
        if not why or "b'" in why:  # bytes as Python writes them
            why = "its parts do not fit together"
        raise InvalidAdapter(
            f"The archive is broken: {why}. Pack it anew, and send all of it.",
            code="archive_refused",
        ) from error


def _take(members: Iterator[_Member], into: Path, largest: int, folder: str | None) -> None:
    seen: set[str] = set()
    places: dict[PurePosixPath, Path] = {}
    pickles: dict[PurePosixPath, str] = {}
    left = largest
    for name, opened in members:
        path = _safe(name)
        if str(path) in seen:
            raise _refused(f"{quoted(name)} is in it twice")
        seen.add(str(path))
        if len(seen) > MOST_MEMBERS:
            raise _refused(f"it has more than {MOST_MEMBERS} members")
        if opened is None or not _is_wanted(path.parent, folder):
            continue
        if path.name.startswith("adapter_model") and path.suffix in _PICKLED:
            pickles[path.parent] = path.name
        if path.name in (CONFIG_FILE, WEIGHTS_FILE, MLX_WEIGHTS_FILE):
            place = places.setdefault(path.parent, into / str(len(places)))
            place.mkdir(exist_ok=True)
            if path.name == CONFIG_FILE:
                _write(opened(), place / path.name, LARGEST_CONFIG, LARGEST_CONFIG)
            else:
                left -= _write(opened(), place / path.name, left, largest)
    chosen = _chosen(places, pickles, folder)
    for file in places[chosen].iterdir():
        file.rename(into / file.name)
    for place in places.values():
        shutil.rmtree(place)


def _is_wanted(found: PurePosixPath, folder: str | None) -> bool:
    if folder is None:
        return len(found.parts) <= _DEEPEST
    wanted = PurePosixPath(folder).parts
    return found.parts[-len(wanted) :] == wanted if wanted else not found.parts


def _chosen(
    places: dict[PurePosixPath, Path], pickles: dict[PurePosixPath, str], folder: str | None
) -> PurePosixPath:
    """The folder of the archive with the adapter: the top one, where a run's checkpoints are in others below."""
    weights = (WEIGHTS_FILE, MLX_WEIGHTS_FILE)
    whole = [
        found
        for found, place in places.items()
        if (place / CONFIG_FILE).exists() and any((place / name).exists() for name in weights)
    ]
    top = min((len(found.parts) for found in whole), default=_DEEPEST + 1)
    for found, name in pickles.items():
        if len(found.parts) < top:
            raise pickled(f"The archive's weights, {name}, are pickled")
    if not whole:
        there = {file.name for place in places.values() for file in place.iterdir()}
        missing = CONFIG_FILE if CONFIG_FILE not in there else WEIGHTS_FILE
        if there > {CONFIG_FILE}:
            raise InvalidAdapter(f"The archive has {CONFIG_FILE} and {WEIGHTS_FILE} in different folders.")
        where = "at its top or in a folder" if folder is None else f"in a folder {folder[:200]!r}"
        raise InvalidAdapter(f"The archive has no {missing} {where}.", param="folder" if folder else None)
    highest = [found for found in whole if len(found.parts) == top]
    if len(highest) > 1:
        names = ", ".join(sorted(map(str, highest)))[:300]
        raise InvalidAdapter(
            f"The archive has adapters in several folders ({names}): say which one, with `folder`, or pack that one.",
            param="folder",
            code="archive_refused",
        )
    return highest[0]


def _write(content: BinaryIO, target: Path, most: int, limit: int) -> int:
    """Write at most `most` bytes of what may be `limit` together. Returns how many there were."""
    size = 0
    with content, target.open("xb") as file:
        while block := content.read(_BLOCK):
            size += len(block)
            if size > most:
                raise _too_large(target.name if most == limit else "What is in the archive", limit)
            file.write(block)
    return size


def _too_large(what: str, largest: int) -> TooLarge:
    return TooLarge(
        f"{what} has more than {largest} bytes, the limit"
        + (" (--max-adapter-size)." if largest != LARGEST_CONFIG else ".")
    )


def _safe(name: str) -> PurePosixPath:
    """A member's name as a path. Raises InvalidAdapter where it leads out of its folder on any operating system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
        raise _refused(f"{quoted(name)} leads out of its folder")
    return path


def _refused(why: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"The archive is refused: {why}. Pack the adapter's folder anew, with its files only.",
        code="archive_refused",
    )


def _is_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tar(source: BinaryIO, largest: int) -> Iterator[_Member]:
    """The members of a tar, read in one pass. `largest` is the limit of its unpacked bytes."""
    meter = _Meter(source)
    with tarfile.open(fileobj=cast(BinaryIO, meter), mode="r|") as archive:
        for at, member in enumerate(archive):
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise _refused(f"{quoted(member.name)} is a link, a device or a sparse file")
            end = member.offset_data + (0 if member.isdir() else member.size)
            if end > largest + (at + 1) * _LARGEST_HEADERS:
                raise _too_large("The archive, unpacked,", largest)
            meter.allowed = end + _LARGEST_HEADERS
            yield member.name, None if member.isdir() else partial(_content, archive, member)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast(BinaryIO, archive.extractfile(member))


class _Meter:
    """The bytes of a tar, up to the position `allowed`, since the library reads headers of any size into memory."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._position = 0
        self.allowed = _LARGEST_HEADERS

    def read(self, size: int) -> bytes:
        block = self._source.read(size)
        self._position += len(block)
        if self._position > self.allowed:
            raise _refused(f"the headers of a member have more than {_LARGEST_HEADERS} bytes")
        return block


def _zip(source: BinaryIO) -> Iterator[_Member]:
    """The members of a zip, from its table of contents."""
    with zipfile.ZipFile(cast(BinaryIO, _Bounded(source))) as archive:
        for member in archive.infolist():
            name = member.filename
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(f"{quoted(name)} is a link or a device")
            if member.flag_bits & 1:
                raise _refused(f"{quoted(name)} is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(f"{quoted(name)} is compressed by another method than deflate")
            yield member.filename, None if member.filename.endswith("/") else partial(_open, archive, member)


def _open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    return cast(BinaryIO, archive.open(member))


class _Bounded:
    """A file that is read in small parts only, since the library would read a table of contents of any size."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._size = source.seek(0, 2)
        self.tell = source.tell

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + {0: 0, 1: self._source.tell(), 2: self._size}[whence]
        if not 0 <= position <= self._size:
            raise zipfile.BadZipFile("it points beyond its end")
        return self._source.seek(position)

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._source.tell() if size < 0 else size
        if size > _LARGEST_READ:
            raise _refused(f"its table of contents has more than {_LARGEST_READ} bytes")
        return self._source.read(size)
