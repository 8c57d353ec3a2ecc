"""A row of an engine that is ready."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rows import engine_info
from tunewright.store.records import Engine
from tunewright.store.states import EngineState
from tunewright.store.store import Store

INTERNAL = "base-" + "0" * 32
"""The engine's name for its base."""


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:  # short: a socket's path has at most 107 bytes
        yield Path(folder) / "s"


@pytest.fixture
def engine(store: Store, socket: Path) -> Engine:
    """The engine of the base, in state ready."""
    store.engines.declare(["tiny"])
    started = store.engines.starting("tiny", str(socket), engine_info(internal_name=INTERNAL))
    store.engines.set_state("tiny", EngineState.READY)
    return started


@pytest.fixture
def few_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings measure what they change on the first passages of the general text alone, before and after: a second of
    processor time less for each. `test_general_text.py` has all of them."""
    from tunewright.trainer import general_text

    first = general_text.passages()[:4]
    monkeypatch.setattr(general_text, "passages", lambda: first)
