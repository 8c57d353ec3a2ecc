"""Backups of a service that runs, restores under it, and kill -9 in the middle. Its base is missing, so no vLLM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import backups
from tests.without_vllm import start_without_vllm
from tunewright.backup import swap
from tunewright.registry.workspace import Workspace
from tunewright.store.states import JobState

from .conftest import DEMO, Service, processes_of, start_service


def filled(path: Path) -> Workspace:
    """A data folder with a file, a model, and a job that waits for its base with two checkpoints."""
    data, store = backups.new_store(path)
    done = backups.new_job(store, JobState.RUNNING)
    backups.job_folder(data, done)
    backups.publish_adapter(data, store, done, "ft:missing::1")
    waiting = backups.new_job(store, JobState.QUEUED)
    folder = backups.job_folder(data, waiting)
    (folder / "process.json").unlink()
    for step in (1, 2):
        backups.checkpoint(folder, step)
    store.close()
    return data


@contextmanager
def running(data: Workspace) -> Iterator[Service]:
    """A running service on this data folder. None of its processes may be left afterwards, however it ends."""
    service = start_service(data.path, "--base", "missing=/nowhere", "--device", "cpu")
    try:
        backups.until(lambda: answers(service), 60)
        yield service
    except BaseException:
        print(service.log.read_text())
        raise
    finally:
        if service.process.poll() is None:
            service.stop()
        backups.until(lambda: processes_of(service) == [])


def answers(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/v1/files", timeout=30, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def upload(service: Service, text: str) -> str:
    files = {"file": ("rows.jsonl", text)}
    answer = httpx.post(f"{service.url}/v1/files", data={"purpose": "fine-tune"}, files=files, timeout=30)
    return str(answer.raise_for_status().json()["id"])


def files(service: Service) -> set[str]:
    return {file["id"] for file in httpx.get(f"{service.url}/v1/files", timeout=60).json()["data"]}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tunewright", *map(str, arguments)]


def tunewright(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=180)


def back_up(data: Workspace, archive: Path) -> dict[str, Any]:
    done = tunewright("backup", archive, "--data-dir", data.path, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def restoring(data: Workspace, archive: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("restore", archive, "--data-dir", data.path, "--replace"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kept(data: Workspace) -> Workspace:
    (replaced,) = data.path.glob("replaced-*")
    return Workspace(replaced)


def asked(data: Workspace) -> bool:
    return (data.run / "restore.json").exists()


class Knocking:
    """Asks for the service's health, over and over, each time on a new connection. To read the certificates that it
    does not need would take longer than a request does."""

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                answer = httpx.get(f"{self._url}/health", timeout=60, verify=False)
                self.answers += answer.status_code == 200
            except httpx.HTTPError as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Knocking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Service]]:
    data = filled(tmp_path_factory.mktemp("backups") / "data")
    with running(data) as service:
        yield data, service
        assert service.process.poll() is None, "it is still the same"
        service.stop()
    assert service.process.returncode == 0
    assert backups.missing(data) == []


@pytest.fixture
def changed(served: tuple[Workspace, Service], tmp_path: Path) -> tuple[Workspace, Service, str]:
    """A service whose data was archived in a.tar; the file with this id came afterwards."""
    data, service = served
    for old in data.path.glob("replaced-*"):
        shutil.rmtree(old)
    back_up(data, tmp_path / "a.tar")
    return data, service, upload(service, "made after the backup\n")


Changed = tuple[Workspace, Service, str]


def test_a_running_service_changes_over(changed: Changed, tmp_path: Path) -> None:
    data, service, after = changed
    before = files(service) - {after}
    with Knocking(service.url) as knocking:
        done = tunewright("restore", tmp_path / "a.tar", "--data-dir", data.path, "--replace")
        assert done.returncode == 0, done.stderr
        assert files(service) == before, "asked while its processes start again"
    assert "The service continues with it." in done.stderr
    assert f"kept in {kept(data).path}" in done.stdout
    assert knocking.answers > 3
    assert knocking.failures == [], "who asked meanwhile waited"
    assert not data.file(after).exists()
    assert kept(data).file(after).read_text() == "made after the backup\n"
    assert backups.missing(kept(data)) == []
    assert backups.missing(data) == []
    assert tunewright("restore", tmp_path / "a.tar", "--data-dir", data.path).returncode == 1
    assert tunewright("restore", tmp_path / "a.tar", "--data-dir", tmp_path / "elsewhere").returncode == 0
    assert backups.missing(Workspace(tmp_path / "elsewhere")) == []


@pytest.mark.soak
def test_two_restores_do_not_mix(changed: Changed, tmp_path: Path) -> None:
    data, service, after = changed
    commands = [restoring(data, tmp_path / "a.tar") for _ in range(2)]
    output = [one.communicate(timeout=120)[0] for one in commands]
    codes = sorted(one.returncode for one in commands)
    assert codes in ([0, 0], [0, 1]), output
    assert codes == [0, 0] or any("another restore is running" in text for text in output)
    assert after not in files(service)
    assert backups.missing(data) == []
    assert len(list(data.path.glob("replaced-*"))) == codes.count(0)
    assert not list(data.path.glob("restore-*"))


@pytest.mark.soak
def test_a_command_killed_once_it_has_asked_is_not_needed(changed: Changed, tmp_path: Path) -> None:
    data, service, after = changed
    restore = restoring(data, tmp_path / "a.tar")
    backups.until(lambda: asked(data), 60)
    restore.kill()
    restore.communicate()
    backups.until(lambda: not swap.is_restore_pending(data), 60)
    assert after not in files(service)
    assert kept(data).file(after).exists()
    assert backups.missing(data) == []


def test_ctrl_c_takes_a_restore_back(changed: Changed, tmp_path: Path) -> None:
    data, service, after = changed
    service.process.send_signal(signal.SIGSTOP)  # so that it does not come to it
    try:
        restore = restoring(data, tmp_path / "a.tar")
        backups.until(lambda: asked(data), 60)
        restore.send_signal(signal.SIGINT)
        output = restore.communicate(timeout=30)[0]
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert restore.returncode == 1
    assert "interrupted. Nothing was changed" in output
    assert after in files(service)
    assert not list(data.path.glob("re[sp]*"))


def test_a_service_killed_while_it_changes_over_is_stood_in_for(tmp_path: Path) -> None:
    """The command finds the service's lock free, and finishes alone. Where both are killed, the next start finishes."""
    data = filled(tmp_path / "data")
    with running(data) as service:
        back_up(data, tmp_path / "a.tar")
        after = upload(service, "made after the backup\n")
        restore = restoring(data, tmp_path / "a.tar")
        backups.until(lambda: asked(data), 60)
        service.process.kill()
        service.process.wait()
        output = restore.communicate(timeout=60)[0]
        assert restore.returncode == 0, output
        assert "Start the service to continue with it." in output
    assert backups.missing(data) == []
    assert kept(data).file(after).exists()
    shutil.rmtree(kept(data).path)
    with running(data) as service:
        assert after not in files(service)
        after = upload(service, "made after the backup, again\n")
        service.process.send_signal(signal.SIGSTOP)  # so that it does not come to it
        restore = restoring(data, tmp_path / "a.tar")
        backups.until(lambda: asked(data), 60)
        for process in (restore, service.process):
            process.kill()
            process.wait()
        assert (data.file(after).exists(), asked(data)) == (True, True)
    with running(data) as service:
        assert after not in files(service)
        assert kept(data).file(after).exists()
    assert backups.missing(data) == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_job_in_training_goes_on_elsewhere_from_its_checkpoint(tmp_path: Path) -> None:
    """The restored job ends bit for bit as the archived one."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((DEMO / "train.jsonl").open().readlines()[:24]))
    first = start_without_vllm(tmp_path / "data")
    try:
        with first.client(timeout=60) as client:
            client.wait_ready(timeout=120)
            tuning = {"type": "lora", "n_epochs": 8, "batch_size": 12, "rank": 8, "learning_rate": 3e-3}
            job = client.jobs.create("tiny", client.files.upload(rows).id, seed=3, tuning=tuning)
            checkpoints = first.data_dir / "jobs" / job.id / "checkpoints"
            backups.until(lambda: list(checkpoints.glob("step-*/complete.json")), 180)
            made = back_up(Workspace(first.data_dir), tmp_path / "a.tar")
            assert made["checkpoints"] >= 1
            assert client.jobs.retrieve(job.id).status == "running", (
                "else it would have nothing to go on with"
            )
            undisturbed = client.jobs.wait(job.id, timeout=300)
            expected = client.adapters.retrieve(undisturbed.fine_tuned_model or "").sha256
    finally:
        first.stop()
    data = Workspace(tmp_path / "elsewhere")
    assert tunewright("restore", tmp_path / "a.tar", "--data-dir", data.path).returncode == 0
    second = start_without_vllm(data.path)
    try:
        with second.client(timeout=60) as client:
            done = client.jobs.wait(job.id, timeout=300)
            events = list(client.jobs.stream_events(job.id))
            again = client.adapters.retrieve(done.fine_tuned_model or "").sha256
    finally:
        second.stop()
    messages = [event.message for event in events]
    assert any(message.startswith("Restored from a backup") for message in messages)
    assert any(message.startswith("Resuming from the checkpoint at step") for message in messages), messages
    steps = [event.data["step"] for event in events if event.type == "metrics" and event.data]
    assert steps == list(range(1, 17)), "each once, those before the backup among them"
    assert (done.fine_tuned_model, again) == (undisturbed.fine_tuned_model, expected)
    assert backups.missing(data) == []
