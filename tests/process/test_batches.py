"""Batches by the whole service with a stand-in for vLLM: by the stock clients, killed, cancelled, and beside others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE, fill, start_without_vllm, wait_engine

from kills import tree
from tunewright_client import Tunewright

SCRIPT = Path(__file__).parent / "openai_batches.py"
OPENAI_2 = Path(sys.prefix) / "openai-2"
ADAPTER = f"ft:{BASE}:s:1"
ENDPOINT = "/v1/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("batches") / "data"
    fill(data_dir)
    running = start_without_vllm(data_dir, environment={"STAND_IN_SECONDS": "0.1"})
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened


@pytest.mark.parametrize("major", ["3", "2"])
def test_the_stock_client_has_requests_answered(service: Service, client: Tunewright, major: str) -> None:
    environment = dict(os.environ)
    if major == "2":
        assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
        environment["PYTHONPATH"] = str(OPENAI_2)
    client.aliases.set("stable", ADAPTER, wait=False)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"{service.url}/v1", BASE, "stable"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"ok {major}."), done.stdout
