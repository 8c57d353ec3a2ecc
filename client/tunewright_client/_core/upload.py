"""Files to upload. A retry sends them again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

FileInput = str | os.PathLike[str] | bytes | bytearray | BinaryIO
FilePart = tuple[str, tuple[str, BinaryIO | bytes, str]]
"""A part of a multipart form as httpx2 takes it: its name, then filename, content and content type."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MLX_FILES = ("adapter_config.json", "adapters.safetensors")


@dataclass(frozen=True, slots=True)
class Part:
    """The content and the filename of one part.

    A path is opened again for each attempt. A binary file is sent whole, from its start; one that cannot seek is read
    into memory first.
    """

    source: Path | bytes | BinaryIO
    filename: str

    @classmethod
    def of(cls, file: FileInput, filename: str | None, default: str) -> Part:
        """`default` is the filename of content without one. Raises FileNotFoundError for a path that is no file and
        TypeError for a file that is opened as text."""
        source: Path | bytes | BinaryIO
        if isinstance(file, str | os.PathLike):
            source = Path(file)
            if not source.is_file():
                raise FileNotFoundError(f"no such file: {source}")
            return cls(source, filename or source.name)
        if isinstance(file, bytes | bytearray):
            return cls(bytes(file), filename or default)
        if not hasattr(file, "read"):
            raise TypeError(f"file must be a path, bytes or a binary file, not {type(file).__name__}")
        if isinstance(file.read(0), str):
            raise TypeError("the file is opened as text: open it with mode 'rb'")
        own_name = getattr(file, "name", None)
        own_name = os.path.basename(own_name) if isinstance(own_name, str) else None
        seekable = getattr(file, "seekable", None)
        source = file if seekable is not None and seekable() else file.read()
        return cls(source, filename or own_name or default)

    @contextmanager
    def opened(self) -> Generator[BinaryIO | bytes, None, None]:
        """The content, open inside the block."""
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
    """A multipart form of files, whose parts have one name, and of other fields."""

    parts: tuple[Part, ...]
    fields: Mapping[str, str]
    name: str = "file"
    boundary: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, file: FileInput, filename: str | None, fields: Mapping[str, str]) -> Upload:
        """One file. Raises what `Part.of` raises."""
        return cls((Part.of(file, filename, "upload.jsonl"),), fields)

    @classmethod
    def of_adapter(cls, source: FileInput, fields: Mapping[str, str]) -> Upload:
        """The two files of a folder of peft or mlx-lm, or an archive. Raises what `Part.of` raises."""
        if isinstance(source, str | os.PathLike) and os.path.isdir(source):
            is_mlx = not Path(source, ADAPTER_FILES[1]).exists() and Path(source, MLX_FILES[1]).exists()
            names = MLX_FILES if is_mlx else ADAPTER_FILES
            return cls(tuple(Part.of(Path(source, name), name, name) for name in names), fields)
        return cls((Part.of(source, None, "adapter.tar"),), fields)

    @contextmanager
    def opened(self) -> Generator[list[FilePart], None, None]:
        """The files for one attempt, open inside the block."""
        with ExitStack() as stack:
            yield [
                (
                    self.name,
                    (part.filename, stack.enter_context(part.opened()), "application/octet-stream"),
                )
                for part in self.parts
            ]
