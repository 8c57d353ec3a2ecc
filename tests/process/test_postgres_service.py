"""The whole service, without vLLM, with its rows in PostgreSQL and its artifacts in a bucket: kills, a second service,
a database and a bucket that do not answer, a backup."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from tests.engine.conftest import Service, free_port, processes_of, wait_until
from tests.without_vllm import BASE, start_without_vllm, wait_engine

from adapters import CONFIG, lora_tensors, safetensors
from kills import tree
from postgres import Server, missing
from s3 import KEYS, S3
from tunewright.config import StorageOptions
from tunewright.registry.content import artifact_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store import service_lock
from tunewright_client import ServiceUnavailableError, Tunewright
from tunewright_client.types import Component

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"PostgreSQL is left out: {missing()}")


@pytest.fixture
def environment(postgres: Server, s3: S3) -> Iterator[dict[str, str]]:
    with postgres.database(migrated=False) as url:
        yield {
            "TUNEWRIGHT_DATABASE_URL": url,
            "TUNEWRIGHT_ARTIFACTS": s3.bucket(),
            "TUNEWRIGHT_ARTIFACTS_ENDPOINT": s3.endpoint,
            "TUNEWRIGHT_FILES_IN_BUCKET": "true",
        }


def run(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunewright", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_service_on_postgresql_and_a_bucket_works_and_keeps_what_it_has(
    postgres: Server, s3: S3, environment: dict[str, str], tmp_path: Path
) -> None:
    url = environment["TUNEWRIGHT_DATABASE_URL"]
    service = start_without_vllm(tmp_path / "data", environment=environment)
    try:
        wait_engine(service)
        with service.client(timeout=120) as client:
            file = client.files.upload(rows(4000), filename="rows.jsonl").id
            cleaning = client.cleanings.create(file, ["duplicates"])
            kill_scheduler(service)
            assert cleaning.wait(timeout=120).cleaned_file is not None
            adapter = client.adapters.register(written(tmp_path / "adapter"), base=BASE, suffix="a").model
            wait_until(lambda: is_loaded(client, adapter), 60, "the adapter")
            wait_until(lambda: bucket(client).ready, 60, "the bucket")
            lose_files(service)
            assert client.files.content(file) == rows(4000)
            assert client.cleanings.create(file, ["html"]).wait(timeout=120).cleaned_file is not None
            before = seen(client)
        with service.client(max_retries=0) as client:
            with postgres.refusing(url), pytest.raises(ServiceUnavailableError) as refused:
                client.files.list()
            assert refused.value.code == "database_unavailable"
            assert seen(client) == before, "nothing has to be restarted"

        wait_until(lambda: holder(url), 60, "the lock of the first service")
        second = run(
            "serve", "--port", free_port(), "--data-dir", tmp_path / "second", environment=environment
        )
        assert second.returncode == 1
        assert "another service uses the database" in second.stderr
        assert str(service.data_dir)[:20] in second.stderr, "it is told where"

        secret = KEYS["AWS_SECRET_ACCESS_KEY"]
        assert secret not in service.log.read_text() + second.stderr + str(processes_of(service))
        written_files = (path for path in service.data_dir.rglob("*") if path.is_file())
        assert not [path for path in written_files if secret.encode() in path.read_bytes()]

        with service.client(timeout=120, max_retries=0) as client:
            client.adapters.unload(adapter)
            shutil.rmtree(service.data_dir / "artifacts")
            s3.stop()
            try:
                with pytest.raises(ServiceUnavailableError, match="does not answer"):
                    client.adapters.load(adapter)
                wait_until(lambda: bucket(client).state == "unavailable", 60, "the state of the bucket")
                assert not bucket(client).required
                assert "does not answer" in (bucket(client).reason or "")
            finally:
                s3.start_again()
            assert client.adapters.load(adapter).state == "loaded"
            wait_until(lambda: bucket(client).ready, 60, "the bucket")
            assert seen(client) == before
    finally:
        service.stop()

    shutil.rmtree(service.data_dir / "artifacts")
    lose_files(service)
    archive = tmp_path / "a.tar"
    made = run("backup", archive, "--data-dir", service.data_dir, environment=environment)
    assert made.returncode == 0, made.stderr
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "archive", filter="data")
    (folder,) = (tmp_path / "archive" / "artifacts").iterdir()
    assert artifact_sha256(folder) == folder.name
    assert (tmp_path / "archive" / "tunewright.db").exists()
    assert (tmp_path / "archive" / "files" / file).read_bytes() == rows(4000)
    storage = StorageOptions(
        data_dir=tmp_path / "elsewhere",
        artifacts=environment["TUNEWRIGHT_ARTIFACTS"],
        artifacts_endpoint=s3.endpoint,
    )
    assert Workspace.of(storage).artifacts.hashes() == {folder.name}
    assert not (service.data_dir / "tunewright.db").exists()


def lose_files(service: Service) -> None:
    """Remove what the data folder has of the bucket's files."""
    for path in (service.data_dir / "files").iterdir():
        path.unlink()


def written(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(lora_tensors()))
    return folder


def rows(count: int) -> bytes:
    return b"".join(
        json.dumps({"prompt": f"{number} + 1 =", "completion": f"{number + 1}"}).encode() + b"\n"
        for number in range(count)
    )


def kill_scheduler(service: Service) -> None:
    running = tree(service.process.pid).items()
    (pid,) = (pid for pid, (_, line) in running if line == "tunewright: scheduler")
    os.kill(pid, signal.SIGKILL)


def bucket(client: Tunewright) -> Component:
    return client.ready().components["artifacts"]


def holder(url: str) -> str | None:
    """Who has the database."""
    with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        return connection.scalar(service_lock._HOLDER)


def is_loaded(client: Tunewright, adapter: str) -> bool:
    return any(one.model == adapter and one.state == "loaded" for one in client.adapters.list())


def seen(client: Tunewright) -> list[list[str]]:
    """What a user sees: files, jobs with their events, and adapters."""
    return [
        sorted(file.id for file in client.files.list()),
        [f"{job.id} {job.status}" for job in client.cleanings.list()],
        [event.id for job in client.cleanings.list() for event in client.cleanings.stream_events(job.id)],
        sorted(adapter.id for adapter in client.adapters.list()),
    ]
