"""Forks of vLLM's server on the CPU: they stay forks, and have the cores and threads that vLLM chose."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tunewright.engine.command import engine_environment
from tunewright.engine.vllm_forks import keep_method, set_threads_before_forks

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


class Platform:
    """As vLLM's CpuPlatform: it asks for new interpreters."""

    checked: Any = None

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        cls.checked = vllm_config
        os.environ[METHOD] = "spawn"


class Manager:
    """As vLLM's OMPProcessManager."""

    cpu_lists: tuple[list[int], ...] = ([min(os.sched_getaffinity(0))],)
    skip_setup = False

    @contextmanager
    def configure_omp_envs(self, rank: int, local_rank: int) -> Iterator[None]:
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            yield
        finally:
            del os.environ["OMP_NUM_THREADS"]


def test_checking_the_options_leaves_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METHOD, "fork")
    platform: Any = type("Checked", (Platform,), dict(Platform.__dict__))
    keep_method(platform)
    keep_method(platform)
    platform.check_and_update_config("a config")
    assert platform.checked == "a config"
    assert os.environ[METHOD] == "fork"


# In a process of its own, since PyTorch's threads may have run in this one.
WORKER = """
import multiprocessing, os, torch
from tests.unit.test_vllm_forks import Manager, report
from tunewright.engine.vllm_forks import set_threads_before_forks

set_threads_before_forks(Manager)
before = (os.sched_getaffinity(0), torch.get_num_threads())
fork = multiprocessing.get_context("fork")
answers = fork.Queue()
with Manager().configure_omp_envs(rank=0, local_rank=0):
    worker = fork.Process(target=report, args=(answers,))
    worker.start()
print(answers.get(timeout=60))
worker.join()
assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
"""


def report(answers: multiprocessing.Queue[Any]) -> None:
    """What a worker finds, once it has computed with all of its threads."""
    import torch

    total = float((torch.ones(500, 500) @ torch.ones(500, 500)).sum())
    answers.put((sorted(os.sched_getaffinity(0)), torch.get_num_threads(), total))


def test_a_worker_has_the_cores_that_vllm_chose_and_a_thread_for_each() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
        cwd=os.getcwd(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((Manager.cpu_lists[0], 1, 500.0**3))


def test_where_vllm_binds_nothing_nothing_is_changed() -> None:
    manager: Any = type("Corrected", (Manager,), dict(Manager.__dict__) | {"skip_setup": True})
    set_threads_before_forks(manager)
    before = os.sched_getaffinity(0)
    with manager().configure_omp_envs(rank=0, local_rank=0):
        assert os.sched_getaffinity(0) == before


def test_engines_fork_on_the_cpu_unless_the_operator_wants_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METHOD, raising=False)
    assert engine_environment("cpu")[METHOD] == "fork"
    assert METHOD not in engine_environment("cuda:0")
    monkeypatch.setenv(METHOD, "spawn")
    assert engine_environment("cpu")[METHOD] == "spawn"
