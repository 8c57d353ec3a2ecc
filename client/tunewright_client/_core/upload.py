"""Files to upload, which may be sent more than once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

FileInput = str | os.PathLike[str] | bytes | bytearray | BinaryIO
FilePart = tuple[str, tuple[str, BinaryIO | bytes, str]]
"""A part of a multipart form, as httpx takes it."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Part:
    """Content and its name.

    A path is opened anew for each attempt. A binary file is sent whole, from its start; one that cannot seek
    is read into memory first.
    """

    source: Path | bytes | BinaryIO
    filename: str

    @classmethod
    def of(cls, file: FileInput, filename: str | None, otherwise: str) -> Part:
        """`otherwise` names what has no name of its own. Raises FileNotFoundError for a path that is no file,
        TypeError for a file opened as text."""
        source: Path | bytes | BinaryIO
        if isinstance(file, str | os.PathLike):
            source = Path(file)
            if not source.is_file():
                raise FileNotFoundError(f"no such file: {source}")
            return cls(source, filename or source.name)
        if isinstance(file, bytes | bytearray):
            return cls(bytes(file), filename or otherwise)
        if not hasattr(file, "read"):
            raise TypeError(f"file must be a path, bytes or a binary file, not {type(file).__name__}")
        if isinstance(file.read(0), str):
            raise TypeError("the file is opened as text: open it with mode 'rb'")
        own_name = getattr(file, "name", None)
        own_name = os.path.basename(own_name) if isinstance(own_name, str) else None
        seekable = getattr(file, "seekable", None)
        source = file if seekable is not None and seekable() else file.read()
        return cls(source, filename or own_name or otherwise)

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


@dataclass(frozen=True, slots=True)
class Upload:
    """A form of files, all named `file`, and other fields."""

    parts: tuple[Part, ...]
    fields: Mapping[str, str]
    boundary: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, file: FileInput, filename: str | None, fields: Mapping[str, str]) -> Upload:
        """Raises as `Part.of` does."""
        return cls((Part.of(file, filename, "upload.jsonl"),), fields)

    @classmethod
    def of_adapter(cls, source: FileInput, fields: Mapping[str, str]) -> Upload:
        """A folder's two files, or an archive. Raises as `Part.of` does."""
        if isinstance(source, str | os.PathLike) and os.path.isdir(source):
            return cls(tuple(Part.of(Path(source, name), name, name) for name in ADAPTER_FILES), fields)
        return cls((Part.of(source, None, "adapter.tar"),), fields)

    @contextmanager
    def opened(self) -> Iterator[list[FilePart]]:
        """The files for one attempt."""
        with ExitStack() as stack:
            yield [
                (
                    "file",
                    (part.filename, stack.enter_context(part.opened()), "application/octet-stream"),
                )
                for part in self.parts
            ]
