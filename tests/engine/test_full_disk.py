"""The disk fills up while a job trains: the job fails with that reason, the service runs on, later jobs succeed.

With a stand-in for vLLM, which does not matter here; everything else is real.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from disks import fill_up, free, small_disk
from tests.without_vllm import BASE, start_without_vllm, wait_engine
from tunewright_client import BadRequestError, Job, ServerError, Tunewright

from .conftest import DEMO, Service, wait_until

MIB = 2**20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with small_disk(tmp_path_factory.mktemp("disk") / "data", 24) as disk:
        running = start_without_vllm(disk)
        try:
            wait_engine(running)
            yield running
        finally:
            running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=60, max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").open().readlines()[:16]))
    with service.client() as client:
        return client.files.upload(path).id


def ended(client: Tunewright, job: Job) -> Job:
    wait_until(lambda: client.jobs.retrieve(job.id).is_final, 240, "the job ends")
    return client.jobs.retrieve(job.id)


def works(client: Tunewright, rows: str) -> None:
    tuning = {"n_epochs": 1, "rank": 8, "learning_rate": 1e-4}
    job = ended(client, client.jobs.create(BASE, rows, tuning=tuning))
    assert job.status == "succeeded", job.error


@pytest.mark.soak
def test_a_checkpoint_that_does_not_fit_fails_its_job_alone(
    service: Service, client: Tunewright, rows: str
) -> None:
    """51 MiB of weights and optimizer on a disk of 24: the failed job frees all the space that it took."""
    room = free(service.data_dir)
    job = ended(client, client.jobs.create(BASE, rows, tuning={"type": "full", "n_epochs": 1}))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "disk_full"
    folder = service.data_dir / "jobs" / job.id
    assert (job.error.message or "").startswith(f"the disk is full: the trainer could not write to {folder}")
    wait_until(lambda: free(service.data_dir) > room - MIB, 10, "what it took is free again")
    works(client, rows)


def test_a_disk_that_is_full_to_the_last_byte_loses_nothing(
    service: Service, client: Tunewright, rows: str
) -> None:
    """The database is on the full disk too: what cannot be recorded at once is recorded when there is space again."""
    job = client.jobs.create(BASE, rows, tuning={"n_epochs": 1000, "rank": 8})
    wait_until(lambda: (p := client.jobs.retrieve(job.id).progress) and p.step >= 3, 120, "it trains")
    waiting = client.jobs.create(BASE, rows, tuning={"n_epochs": 1, "rank": 8}, seed=3)
    ballast = fill_up(service.data_dir)
    try:
        wait_until(lambda: _over_or_stuck(service, client, job), 120, "its trainer ends")
        fill_up(service.data_dir)
        assert refusal(client, rows) == (507, "storage_full")
        assert client.jobs.retrieve(waiting.id).status in ("queued", "running", "validating_files")
        assert client.models.retrieve(BASE).id == BASE
    finally:
        ballast.unlink()
    over = ended(client, job)
    assert over.status == "failed"
    assert over.error is not None
    assert over.error.code == "disk_full", over.error.message
    steps = [e.metrics.step for e in client.jobs.stream_events(job.id) if e.metrics]
    assert steps == list(range(1, len(steps) + 1)), "each step is reported, and once"
    assert ended(client, waiting).status == "succeeded"
    works(client, rows)
    assert service.process.poll() is None
    with pytest.raises(BadRequestError):
        client.jobs.cancel(job.id)


def refusal(client: Tunewright, rows: str) -> tuple[int, str | None]:
    """(status, code) of the first write for which there is no space: the database file has some free pages."""
    for number in range(1000):
        try:
            client.jobs.create(BASE, rows, metadata={"n": str(number), "pad": "x" * 500}).cancel()
        except ServerError as error:
            return error.status_code, error.code
    pytest.fail("a thousand jobs found room on a full disk")


def _over_or_stuck(service: Service, client: Tunewright, job: Job) -> bool:
    """The job's trainer has ended, whether or not that could be recorded."""
    folder = service.data_dir / "jobs" / job.id
    return client.jobs.retrieve(job.id).is_final or not (folder / "process.json").exists()
