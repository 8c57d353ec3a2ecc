"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def download_target(path: str | os.PathLike[str], name: str) -> Path:
    """The file to write: `path`, or `<name>.tar` in it where `path` is a folder.

    Raises FileNotFoundError where the folder of the file does not exist.
    """
    target = Path(path)
    if target.is_dir():
        target = target / (re.sub(r"[^A-Za-z0-9._-]+", "-", name) + ".tar")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}")
    return target


@contextmanager
def replacing(target: Path) -> Generator[BinaryIO, None, None]:
    """A new file that replaces `target` when the block ends without an error, and is removed otherwise."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
