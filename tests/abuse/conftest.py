"""A whole service, with a stand-in for vLLM, that is abused; and what it must not show afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzzing import TRIED_THREE_TIMES, unharmed
from tests.engine.conftest import Service
from tests.without_vllm import fill, start_without_vllm, wait_engine
from uploads import MIB, memory, peak_memory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/abuse/" in str(item.path):
            item.add_marker(TRIED_THREE_TIMES)


@pytest.fixture(scope="package")
def silent_hub() -> Iterator[str]:
    """The address of a hub that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, silent_hub: str) -> Iterator[Service]:
    data_dir: Path = tmp_path_factory.mktemp("abuse") / "data"
    fill(data_dir)
    running = start_without_vllm(
        data_dir, "--base", "missing=/nowhere", environment={"HF_ENDPOINT": silent_hub}
    )
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


@pytest.fixture
def most_memory() -> int:
    """Bytes that the api may take for a test beyond what it had."""
    return 300 * MIB


@pytest.fixture(autouse=True)
def _unharmed(service: Service, most_memory: int) -> Iterator[None]:
    """After each test: nothing failed, no stall of the event loop, and the memory is bounded."""
    before = memory(service)
    with unharmed(service.log):
        yield
    grown = peak_memory(service) - before
    assert grown < most_memory, f"{grown / MIB:.0f} MiB"
