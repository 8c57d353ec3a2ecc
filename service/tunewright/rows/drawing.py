"""Which rows of a file are drawn where not all of them are wanted."""

from __future__ import annotations


def drawn(rows: int, wanted: int | None, seed: int) -> frozenset[int]:
    """The numbers (from 0) of the rows of a file that are drawn: all where so many are wanted, or more."""
    if wanted is None or wanted >= rows:
        return frozenset(range(rows))
    import numpy as np  # the service, which imports this module, starts without it

    return frozenset(np.random.default_rng(seed).permutation(rows)[:wanted].tolist())
