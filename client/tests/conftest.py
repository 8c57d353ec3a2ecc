"""Fixtures: an environment without settings, short delays, a fake server and a client of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fake_server import FakeServer

from tunewright_client import Tunewright
from tunewright_client._core import retry


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TUNEWRIGHT_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Tunewright]:
    with Tunewright(server.url, api_key="key-1") as made:
        yield made
