"""The official `openai` package reads every answer of ours where it validates strictly, in both current versions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.conftest import Service
from tests.without_vllm import fill, start_without_vllm, wait_engine

HERE = Path(__file__).parent
OPENAI_2 = Path(sys.prefix) / "openai-2"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("strict") / "data"
    fill(data_dir)
    running = start_without_vllm(data_dir, "--base", "missing=/nowhere")
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("script", "major"),
    [
        ("openai_strict.py", "3"), ("openai_strict.py", "2"), ("openai_resources.py", "3"),
        pytest.param("openai_resources.py", "2", marks=pytest.mark.soak),
    ],
)  # fmt: skip
def test_every_answer_is_one_that_the_stock_client_knows(service: Service, major: str, script: str) -> None:
    environment = dict(os.environ)
    if major == "2":
        assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
        environment["PYTHONPATH"] = str(OPENAI_2)
    done = subprocess.run(
        [sys.executable, str(HERE / script), f"{service.url}/v1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"ok {major}."), done.stdout
