"""Tests of one service that checks each adapter with a real vLLM (parity), and can deploy another model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import Service, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE, embedded_base_path


@pytest.fixture(scope="package")
def checking_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the base that `checking_service` serves: a test may change them under the engine, which read them
    before."""
    return Path(shutil.copytree(embedded_base_path(), tmp_path_factory.mktemp("bases") / "checking"))


@pytest.fixture(scope="package")
def checking_service(tmp_path_factory: pytest.TempPathFactory, checking_base: Path) -> Iterator[Service]:
    """With the parity check on, and a model that can be deployed: `other`."""
    root = tmp_path_factory.mktemp("checking")
    shutil.copytree(embedded_base_path(), root / "other")
    running = start_service(
        root / "data",
        "--base", f"{EMBEDDED_BASE}={checking_base}",
        "--device", "cpu",
        "--kv-cache-memory", "128MiB",
        "--deployable", f"other={root / 'other'}",
    )  # fmt: skip
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()
