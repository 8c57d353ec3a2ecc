"""Gzipped text, expanded as it is read and within a bound."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from typing import BinaryIO

from tunewright.rows.faults import InvalidData

_MOST, _SPARE = 200, 64 * 2**20
"""A file may expand to so many times its size, and so many bytes more: repeated rows of text reach some tens."""


class Expanded(io.BufferedIOBase, BinaryIO):
    """What a gzipped file holds. Reading raises InvalidData where the file is damaged or made to fill the reader."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = gzip.GzipFile(fileobj=file)
        self._most = os.fstat(file.fileno()).st_size * _MOST + _SPARE

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self._counted(self._text.read(size))
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(error) from None

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return self._counted(self._text.readline(-1 if size is None else size))
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(error) from None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._text.seek(offset, whence)

    def _counted(self, block: bytes) -> bytes:
        if self._text.tell() > self._most:
            raise InvalidData(
                f"the file expands to more than {_MOST} times its size, which training data does not: upload it "
                "without gzip"
            )
        return block


def _damaged(error: Exception) -> InvalidData:
    return InvalidData(
        f"the gzip compression is damaged or cut off ({error}): compress and upload the file again"
    )
