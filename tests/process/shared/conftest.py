"""Tests of one service with a stand-in for vLLM, which starts before the first of them and ends after the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.conftest import Service
from tests.without_vllm import start_without_vllm, wait_engine


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("process") / "data"
    # the grader of a job in test_grpo_service has a program
    # receivers in test_webhooks_service are on loopback
    webhooks = ("--webhook-host", "127.0.0.1", "--webhook-retry-delay", "0.01")
    running = start_without_vllm(data_dir, "--python-graders", "unconfined", *webhooks)
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()
