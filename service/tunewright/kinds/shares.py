"""The share of an engine that the jobs have which ask it through the gateway."""

from __future__ import annotations

from tunewright.store.records import Engine

SHARE = 4
"""An evaluation, or a synthesis, has one in so many of the sequences that an engine runs at once; one of each kind runs
at a time."""
MOST_AT_ONCE = 64
"""Requests in flight, however many an engine runs: more would not make it faster."""
_SEQUENCES = 256
"""Those of an engine that an earlier version of the service has started."""


def places_at(engine: Engine) -> int:
    """How many requests a job may have at this engine at a time."""
    sequences = (engine.info.max_num_seqs if engine.info else None) or _SEQUENCES
    return max(1, min(MOST_AT_ONCE, sequences // SHARE))
