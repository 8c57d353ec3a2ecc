"""Files that jobs' processes make."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Product(BaseModel):
    """A file that was made."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


def product_at(path: Path) -> Product:
    """The file at this path. Raises OSError."""
    with path.open("rb") as file:
        return Product(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
