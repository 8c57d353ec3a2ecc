"""A file to upload, which may be sent more than once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

FileInput = str | os.PathLike[str] | bytes | bytearray | BinaryIO


@dataclass(frozen=True, slots=True)
class Upload:
    """Content, its name, and the form's other fields.

    A path is opened anew for each attempt. A binary file is sent whole, from its start; one that cannot seek
    is read into memory first.
    """

    source: Path | bytes | BinaryIO
    filename: str
    fields: Mapping[str, str]
    boundary: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, file: FileInput, filename: str | None, fields: Mapping[str, str]) -> Upload:
        """Raises FileNotFoundError for a path that is no file, TypeError for a file opened as text."""
        source: Path | bytes | BinaryIO
        if isinstance(file, str | os.PathLike):
            source = Path(file)
            if not source.is_file():
                raise FileNotFoundError(f"no such file: {source}")
            return cls(source, filename or source.name, fields)
        if isinstance(file, bytes | bytearray):
            return cls(bytes(file), filename or "upload.jsonl", fields)
        if not hasattr(file, "read"):
            raise TypeError(f"file must be a path, bytes or a binary file, not {type(file).__name__}")
        if isinstance(file.read(0), str):
            raise TypeError("the file is opened as text: open it with mode 'rb'")
        own_name = getattr(file, "name", None)
        own_name = os.path.basename(own_name) if isinstance(own_name, str) else None
        seekable = getattr(file, "seekable", None)
        source = file if seekable is not None and seekable() else file.read()
        return cls(source, filename or own_name or "upload.jsonl", fields)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO | bytes]:
        """The content for one attempt."""
        if isinstance(self.source, Path):
            with self.source.open("rb") as opened:
                yield opened
        elif isinstance(self.source, bytes):
            yield self.source
        else:
            self.source.seek(0)
            yield self.source
