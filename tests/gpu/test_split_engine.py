"""A base split over two GPUs (tensor parallelism): its adapters are trained, checked, served and swapped as on one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from several import gpus
from tests.engine.conftest import Service, start_service, wait_ready
from tests.swaps import Swapper, learn_answers, table, train
from tunewright.config import EMBEDDED_BASE
from tunewright.engine.gpus import gpu_states

# TUNEWRIGHT_TEST_DEVICE=cpu runs it with one engine that is not split, to try the test itself.
ON_CPU = os.environ.get("TUNEWRIGHT_TEST_DEVICE") == "cpu"
pytestmark = [
    pytest.mark.gpu, pytest.mark.timeout(900),
    pytest.mark.skipif(gpus() < 2 and not ON_CPU, reason="there are not two GPUs"),
]  # fmt: skip
SPLIT = [] if ON_CPU else ["--device", "cuda", "--tensor-parallel-size", "2"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    began = time.monotonic()
    running = start_service(tmp_path_factory.mktemp("split") / "data", *SPLIT, "--vllm-arg=--enforce-eager")
    try:
        wait_ready(running, 300)
        print(f"\nready after {time.monotonic() - began:.1f} s")
        yield running
    finally:
        mine = _of_vllm(running)
        assert running.stop() < 15
        assert [process for process in mine if process.is_running()] == []


@pytest.fixture(scope="module")
def models(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with service.client() as client:
        return train(client, tmp_path_factory.mktemp("rows"), ("Arr", "Beep", "Quack"))


def _of_vllm(service: Service, title: str = "") -> list[psutil.Process]:
    """The service's processes of vLLM with such a title."""
    below = psutil.Process(service.process.pid).children(recursive=True)
    return [process for process in below if " ".join(process.cmdline()).startswith(f"VLLM::{title}")]


def test_the_engine_has_a_worker_on_each_gpu(service: Service) -> None:
    if ON_CPU:
        pytest.skip("it is not split")
    assert len(_of_vllm(service, "Worker")) == 2
    for gpu in gpu_states()[:2]:
        assert gpu.memory_used > 0.3 * gpu.memory_total, "each has the share of the engine"


def test_jobs_run_at_once_on_both_gpus_beside_the_engine(service: Service, models: list[str]) -> None:
    with service.client() as client:
        started = {
            event.message.partition(" started on ")[2]
            for job in client.jobs.list()
            for event in client.jobs.stream_events(job.id)
            if " started on " in event.message
        }
    print(started)
    assert started == ({"cpu"} if ON_CPU else {"cuda:0", "cuda:1"})


def test_each_adapter_passes_its_parity_check(service: Service, models: list[str]) -> None:
    with service.client() as client:
        for model in models:
            deadline = time.monotonic() + 300
            while (found := client.adapters.retrieve(model).parity) is None or found.check_pending:
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
            print(model, found.reason)
            assert found.verdict == "pass"


def test_adapters_are_swapped_without_a_failed_or_wrong_answer(service: Service, models: list[str]) -> None:
    expected = learn_answers(service, models)
    swapper = Swapper(service, models, expected)
    seen = swapper.run(streams=16, seconds=40, flip_every=0.4, cycle_every=0.9)
    print(f"\n{seen.flips} flips, {seen.cycles} cycles, {sum(seen.answers.values())} answers\n{table(seen)}")
    assert seen.faults == []
    assert seen.flips >= 10
    assert seen.cycles >= 10


def test_a_worker_that_is_killed_takes_the_engine_down_which_starts_again(
    service: Service, models: list[str]
) -> None:
    expected = learn_answers(service, models)
    workers = _of_vllm(service, "Worker")
    before = time.monotonic()
    os.kill(workers[-1].pid, signal.SIGKILL)
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() - before < 60
        time.sleep(0.1)
    wait_ready(service, 300)
    print(f"\nready again after {time.monotonic() - before:.1f} s")
    assert learn_answers(service, models) == expected
    with service.client() as client:
        assert EMBEDDED_BASE in {model.id for model in client.models.list()}
