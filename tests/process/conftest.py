"""A whole service with a stand-in for vLLM, which several files share; others have a `service` of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.conftest import Service
from tests.without_vllm import start_without_vllm, wait_engine

from tunewright_client import Tunewright


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The files that use it are named in SHARED (tests/scheduling.py)."""
    data_dir = tmp_path_factory.mktemp("process") / "data"
    # the grader of a job in test_grpo_service has a program
    running = start_without_vllm(data_dir, "--python-graders", "unconfined")
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened
