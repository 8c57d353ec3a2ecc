"""What the scheduler last found of the bucket of artifacts, in a file for the api."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tunewright.atomic import write_atomically


@dataclass(frozen=True)
class BucketState:
    is_available: bool
    reason: str | None = None
    """Why it is not available."""

    def write(self, path: Path) -> None:
        """Raises OSError."""
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where nothing was found yet."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
