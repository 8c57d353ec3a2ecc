"""The service starts on a data folder that an earlier version wrote, shows what is in it, and goes on with its jobs."""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.engine.conftest import Service
from tests.without_vllm import start_without_vllm, wait_engine

from tunewright.store.database import known_revisions
from tunewright_client import Tunewright

FOLDERS = Path(__file__).parents[1] / "data_folders"


def revision_of(data_dir: Path) -> str:
    with closing(sqlite3.connect(data_dir / "tunewright.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("earlier")
    with tarfile.open(FOLDERS / "0005.tar.xz") as archive:
        archive.extractall(root, filter="data")
    data_dir = root / "tunewright-data"
    assert revision_of(data_dir) == "0005"
    running = start_without_vllm(data_dir)
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=60) as opened:
        yield opened


def test_the_database_is_upgraded_and_the_old_one_kept(service: Service, client: Tunewright) -> None:
    assert revision_of(service.data_dir) == known_revisions()[0]
    assert len(list((service.data_dir / "backups").glob("tunewright-0005-*.db"))) == 1


def test_its_jobs_are_shown_as_they_were(client: Tunewright) -> None:
    jobs = {job.suffix: job for job in client.jobs.list(limit=10)}
    assert {suffix: job.status for suffix, job in jobs.items()} == {
        "one": "succeeded",
        "two": jobs["two"].status,
        "three": "cancelled",
    }
    one = jobs["one"]
    assert one.fine_tuned_model == "ft:tiny:one:oYUBTZIw"
    assert (one.seed, one.metadata) == (1, {"made": "by 0005"})
    assert one.trained_tokens
    assert one.training_file == one.validation_file
    assert one.result_files
    assert client.files.content(one.result_files[0]).startswith(b"step,")
    events = [event.message for event in client.jobs.stream_events(one.id)]
    assert events[0] == f"Created fine-tuning job: {one.id}"
    assert events[-1] == "The job has successfully completed"
    assert "Training" in client.jobs.logs(one.id), "its log has the name that it had then"


def test_its_export_is_shown_with_what_was_measured(client: Tunewright) -> None:
    (export,) = client.exports.list(limit=10)
    assert (export.status, export.format, export.suffix) == ("failed", "awq", "held")
    assert export.error is not None
    assert export.error.code == "quality_gate_failed"
    assert export.report is not None
    assert export.report.gate.passed is False
    assert [source.model for source in export.models] == ["ft:tiny:one:oYUBTZIw"]


def test_its_adapter_and_alias_are_served(client: Tunewright) -> None:
    for name in ("ft:tiny:one:oYUBTZIw", "bot"):
        answer = client.chat.create(name, [{"role": "user", "content": "Hi"}])
        assert answer.model == "ft:tiny:one:oYUBTZIw"


def test_a_paused_job_goes_on_from_its_checkpoint_and_is_published(client: Tunewright) -> None:
    (job,) = (job for job in client.jobs.list(limit=10) if job.suffix == "two")
    assert job.status == "paused"
    client.jobs.resume(job.id)
    done = client.jobs.wait(job.id, timeout=300)
    assert done.status == "succeeded"
    steps = [
        event.data["step"]
        for event in client.jobs.stream_events(job.id)
        if event.type == "metrics" and event.data
    ]
    assert steps == list(range(1, 161)), "each step once, the first seven by the earlier version"
