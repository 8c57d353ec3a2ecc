"""Sets of hashes that take 8 bytes for each, and the hashes by which near duplicates are found.

numpy is imported where it is used: those who only read the options of steps do without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PERMUTATIONS = 128
_RECENT = 2**17
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""Words; of scripts without spaces, characters."""
_SHINGLE = 3
_LONGEST = 20_000
"""Words of a row that are compared."""


class HashSet:
    """64-bit hashes, in sorted arrays of growing size; a Python set would take ten times the memory."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def has_any(self, hashes: Iterable[int]) -> bool:
        hashes = list(hashes)
        if not self._recent.isdisjoint(hashes):
            return True
        if not self._sorted:
            return False
        import numpy as np

        wanted = np.array(hashes, dtype=np.uint64)
        return any(_has_any(level, wanted) for level in self._sorted)

    def add(self, hashes: Iterable[int]) -> None:
        self._recent.update(hashes)
        if len(self._recent) < _RECENT:
            return
        import numpy as np

        level = np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) <= 2 * len(level):
            level = np.concatenate([self._sorted.pop(), level])
            level.sort(kind="stable")
        self._sorted.append(level)

    def saved(self) -> dict[str, np.ndarray]:
        """Its content, by names, without a copy of what is large."""
        import numpy as np

        recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        return {"recent": recent, **{str(number): level for number, level in enumerate(self._sorted)}}

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Take the content of another one."""
        self._recent = set(saved["recent"].tolist())
        self._sorted = [saved[str(number)] for number in range(len(saved) - 1)]


def _has_any(level: np.ndarray, wanted: np.ndarray) -> bool:
    import numpy as np

    places = np.searchsorted(level, wanted)
    inside = places < len(level)
    return bool(np.any(level[places[inside]] == wanted[inside]))


def bands_of(similarity: float) -> tuple[int, int]:
    """(bands, rows of each): so that of texts with this Jaccard similarity about half share a band, of more similar
    ones nearly all, of less similar ones nearly none (Leskovec et al., Mining of Massive Datasets, 3.4.2)."""

    def half(rows: int) -> float:
        bands = PERMUTATIONS // rows
        return abs((1 - (1 - similarity**rows) ** bands) - 0.5)

    rows = min((rows for rows in range(1, 33)), key=half)
    return PERMUTATIONS // rows, rows


def band_hashes(text: str, bands: int, rows: int) -> list[int]:
    """A hash for each band of the text's MinHash signature, over its shingles of three words. Empty for a text without
    words."""
    import numpy as np
    from rensa import RMinHash  # in Rust: some 20 microseconds a row

    words = _WORD.findall(text.casefold())[:_LONGEST]
    if not words:
        return []
    ends = max(len(words) - _SHINGLE + 1, 1)
    signature = RMinHash(num_perm=PERMUTATIONS, seed=1)
    signature.update([" ".join(words[start : start + _SHINGLE]) for start in range(ends)])
    digest = np.array(signature.digest()[: bands * rows], dtype=np.uint32).reshape(bands, rows)
    return [hash_of(band, digest[band]) for band in range(bands)]


def hash_of(band: int, values: np.ndarray) -> int:
    digest = hashlib.blake2b(values.tobytes(), digest_size=8, salt=band.to_bytes(2, "big"))
    return int.from_bytes(digest.digest(), "big")
