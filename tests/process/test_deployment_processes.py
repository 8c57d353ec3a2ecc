"""Deployments in a whole service with a stand-in for vLLM: started, killed, restarted, drained under a stream."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engine.conftest import Service, processes_of, wait_until
from tests.without_vllm import start_without_vllm, wait_engine

from rows import PRODUCT
from tunewright.config import embedded_base_path
from tunewright.registry.content import model_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database
from tunewright.store.store import Store
from tunewright.supervisor.process import GroupRecord
from tunewright_client import DeploymentFailedError, NotFoundError, Tunewright

FULL = "ft:tiny:full:1"
BASE = "tiny"


def copy_of_the_base(folder: Path) -> Path:
    shutil.copytree(embedded_base_path(), folder)
    return folder


def list_full_model(data_dir: Path) -> None:
    """The embedded base's weights as a job's full model."""
    data = Workspace(data_dir)
    data.create()
    database = Database(f"sqlite:///{data.path / 'tunewright.db'}")
    database.upgrade()
    database.close()
    sha256 = data.artifacts.put(embedded_base_path())
    store = Store.open(database.url)
    row = {"id": "model-full", "name": FULL, "kind": "full", "method": "full", "sha256": sha256}
    store.models.register(
        {**PRODUCT, **row, "job_id": None, "source": "job", "lineage": None, "desired": "unloaded"}
    )
    store.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("deployments")
    list_full_model(root / "data")
    copy, broken = copy_of_the_base(root / "copy"), copy_of_the_base(root / "broken")
    (broken / "cannot-start").touch()
    running = start_without_vllm(
        root / "data", "--deployable", f"copy={copy}", "--deployable", f"broken={broken}",
        "--kv-cache-memory", "16MiB",
    )  # fmt: skip
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=60) as opened:
        for deployment in opened.deployments.list():
            deployment.delete(force=True, timeout=0)
        yield opened


def ask(client: Tunewright, model: str) -> tuple[str, str]:
    """The model that answered and the folder that it was served from."""
    answer = client.chat.create(model, [{"role": "user", "content": "Hi"}])
    return answer.model, str(answer.system_fingerprint)


def pid_at(record_path: Path) -> int | None:
    """The process id of the engine's command; None while it is started."""
    record = GroupRecord.read(record_path)
    return record.command.pid if record and record.command else None


def pid_of(service: Service, model: str) -> int:
    path = Workspace(service.data_dir).engine(model) / "process.json"
    return int(wait_until(lambda: pid_at(path), 20, f"an engine of {model}"))


def pid_of_child(service: Service, name: str) -> int:
    """The process id of the api or the scheduler."""
    return int(wait_until(lambda: pid_at(service.data_dir / "run" / f"{name}.json"), 20, name))


def test_a_model_is_served_beside_the_others_and_taken_down(service: Service, client: Tunewright) -> None:
    tiny = pid_of(service, BASE)
    made = client.deployments.create(FULL, {"max_loras": 2})
    assert made.state == "starting"
    states: list[str] = []
    done = made.wait(timeout=30, on_change=lambda now: states.append(now.state))
    assert states[-1] == "ready"
    assert (done.id, done.model, done.state, done.device) == (made.id, FULL, "ready", "cpu")
    assert done.memory_bytes is not None
    assert done.memory_bytes > 10 * 2**20
    assert done.started_at is not None
    assert done.ready_at is not None
    assert client.deployments.create("copy").wait(timeout=30).model == "copy"
    sha256 = model_sha256(embedded_base_path())
    assert ask(client, FULL) == (FULL, sha256)
    assert ask(client, "copy") == ("copy", "copy")
    assert ask(client, BASE) == (BASE, embedded_base_path().name)
    command = Path(f"/proc/{pid_of(service, FULL)}/cmdline").read_bytes().replace(b"\0", b" ").split()
    assert command[command.index(b"--max-loras") + 1] == b"2"
    assert client.models.retrieve(FULL).state == "ready"
    gone = pid_of(service, FULL)
    assert made.delete().deleted
    assert not Path(f"/proc/{gone}").exists()
    assert client.models.retrieve(FULL).state == "stored", "the model stays"
    with pytest.raises(NotFoundError):
        made.refresh()
    with pytest.raises(Exception, match="not served now"):
        ask(client, FULL)
    assert ask(client, "copy")[0] == "copy"
    assert pid_of(service, BASE) == tiny, "the base never noticed"


def test_one_that_cannot_start_says_why_and_harms_nobody(service: Service, client: Tunewright) -> None:
    client.deployments.create("copy").wait(timeout=30)
    others = {model: pid_of(service, model) for model in (BASE, "copy")}
    made = client.deployments.create("broken")
    with pytest.raises(DeploymentFailedError, match="ValueError: there is no such architecture") as failed:
        made.wait(timeout=60)
    record = failed.value.deployment
    assert record.state == "failed"
    assert record.reason is not None
    assert "exit code 1" in record.reason
    assert record.log_tail is not None
    assert "no such architecture" in record.log_tail[-1]
    assert "no such architecture" in client.deployments.logs("broken", tail=1)
    assert client.ready().ready
    with pytest.raises(Exception, match="could not be started"):
        ask(client, "broken")
    time.sleep(3)
    assert made.refresh().started_at == record.started_at, "it is not tried again by itself"
    assert {model: pid_of(service, model) for model in others} == others
    assert ask(client, "copy")[0] == "copy"
    broken = service.data_dir.parent / "broken" / "cannot-start"
    broken.unlink()
    try:
        assert made.restart().state == "starting"
        assert made.wait(timeout=30).state == "ready"
        assert ask(client, "broken") == ("broken", "broken")
    finally:
        broken.touch()


def slow_stream(service: Service, model: str, chunks: int, outcome: dict[str, Any]) -> threading.Thread:
    """A generation of `chunks` x 50 ms; `outcome` says how it ended."""
    begun = threading.Event()

    def run() -> None:
        body = {
            "model": model,
            "stream": True,
            "vllm_xargs": {"chunks": chunks},
            "messages": [{"role": "user", "content": "Hi"}],
        }
        lines = []
        with (
            suppress(httpx.RemoteProtocolError),  # the api was killed
            httpx.Client(timeout=60) as http,
            http.stream("POST", f"{service.url}/v1/chat/completions", json=body) as answer,
        ):
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()
        outcome["status"], outcome["last"] = answer.status_code, [line for line in lines if line][-1]
        outcome["events"] = sum(line.startswith("data: {") for line in lines)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(20)
    return thread


@pytest.mark.parametrize("killed", ["nobody", "scheduler", "api"])
def test_a_running_stream_ends_before_its_engine_does(
    service: Service, client: Tunewright, killed: str
) -> None:
    """A request after the deletion gets the error that the model does not exist, and no other."""
    made = client.deployments.create(FULL)
    made.wait(timeout=30)
    outcome: dict[str, Any] = {}
    thread = slow_stream(service, FULL, 60, outcome)
    deleted: list[bool] = []

    def delete() -> None:
        with suppress(NotFoundError):  # asked again by the SDK, after the api that was killed
            deleted.append(made.delete(timeout=60).deleted)

    deletion = threading.Thread(target=delete)
    deletion.start()
    wait_until(lambda: client.deployments.retrieve(made.id).state == "draining", 10)
    if killed == "scheduler":
        os.kill(pid_of_child(service, "scheduler"), signal.SIGKILL)
    elif killed == "api":
        os.kill(pid_of_child(service, "api"), signal.SIGKILL)
        thread.join(30)
        deletion.join(60)
        wait_until(
            lambda: not is_there(client, made.id), 30, "the drain ends without the api that asked for it"
        )
        return
    with pytest.raises(NotFoundError, match="being taken down"):
        ask(client, FULL)
    assert client.deployments.retrieve(made.id).state == "draining", "the stream still runs"
    thread.join(30)
    deletion.join(60)
    assert outcome == {"status": 200, "last": "data: [DONE]", "events": 61}
    assert deleted == [True]


def is_there(client: Tunewright, id: str) -> bool:
    try:
        client.deployments.retrieve(id)
    except NotFoundError:
        return False
    return True


def test_a_stream_that_does_not_end_in_time_is_cut(service: Service, client: Tunewright) -> None:
    made = client.deployments.create(FULL)
    made.wait(timeout=30)
    outcome: dict[str, Any] = {}
    thread = slow_stream(service, FULL, 400, outcome)
    began = time.monotonic()
    made.delete(timeout=0.5)
    assert 0.4 < time.monotonic() - began < 12
    thread.join(20)
    assert "error" in outcome["last"]


def test_nobody_is_failed_by_a_deletion_under_load(service: Service, client: Tunewright) -> None:
    """An alias is moved from the deployed model to the base, and the deployment deleted, while many ask the alias."""
    made = client.deployments.create(FULL)
    made.wait(timeout=30)
    client.aliases.set("bot", FULL)
    stop = threading.Event()
    faults: list[str] = []
    answers: dict[str, int] = {}

    def keep_asking(number: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                body = {
                    "model": "bot",
                    "stream": number % 2 == 0,
                    "vllm_xargs": {"chunks": 3},
                    "messages": [{"role": "user"}],
                }
                answer = http.post(f"{service.url}/v1/chat/completions", json=body)
                if answer.status_code != 200 or (body["stream"] and "[DONE]" not in answer.text):
                    faults.append(answer.text)
                by = answer.headers.get("x-tunewright-model", "")
                answers[by] = answers.get(by, 0) + 1

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    client.aliases.set("bot", BASE)
    made.delete()
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join(30)
    client.aliases.delete("bot")
    assert faults == []
    assert set(answers) == {FULL, BASE}


def test_engines_are_forks_of_a_process_that_they_outlive(service: Service, client: Tunewright) -> None:
    """One that has imported vLLM; where it is killed they answer on, and the next one starts anyway."""
    client.deployments.create(FULL).wait(timeout=30)
    engine, server = pid_of(service, FULL), pid_of_child(service, "engine-fork-server")
    assert parent_of(engine) == server
    os.kill(server, signal.SIGKILL)
    assert ask(client, FULL)[0] == FULL
    client.deployments.create("copy").wait(timeout=30)
    assert ask(client, "copy")[0] == "copy"
    assert pid_of(service, FULL) == engine
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: now(client) == "ready" and pid_of(service, FULL) != engine, 40, "it comes back")
    assert parent_of(pid_of(service, FULL)) == pid_of_child(service, "engine-fork-server") != server


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_scheduler_finds_its_engines_again(service: Service, client: Tunewright) -> None:
    client.deployments.create(FULL).wait(timeout=30)
    engine, scheduler = pid_of(service, FULL), pid_of_child(service, "scheduler")
    os.kill(scheduler, signal.SIGKILL)
    assert ask(client, FULL)[0] == FULL
    wait_until(lambda: pid_of_child(service, "scheduler") != scheduler, 20)
    time.sleep(1.5)
    assert pid_of(service, FULL) == engine
    assert client.deployments.retrieve(FULL).state == "ready"
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: now(client) == "ready" and pid_of(service, FULL) != engine, 40, "it comes back")
    assert ask(client, FULL)[0] == FULL


def now(client: Tunewright) -> str:
    return client.deployments.retrieve(FULL).state


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[[], Service]]:
    """Starts a service on the same data folder again and again."""
    list_full_model(tmp_path / "data")
    broken = copy_of_the_base(tmp_path / "broken")
    (broken / "cannot-start").touch()
    started: list[Service] = []

    def start() -> Service:
        arguments = ("--deployable", f"broken={broken}", "--kv-cache-memory", "16MiB")
        started.append(start_without_vllm(tmp_path / "data", *arguments))
        wait_engine(started[-1])
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_deployments_come_back_after_a_restart(alone: Callable[[], Service]) -> None:
    """Deployments that had failed too: they are tried again; the one that was being drained is removed."""
    first = alone()
    with first.client(timeout=60) as client:
        client.deployments.create(FULL, {"max_num_seqs": 3}).wait(timeout=30)
        with pytest.raises(DeploymentFailedError):
            client.deployments.create("broken").wait(timeout=60)
    first.stop()
    assert processes_of(first) == []
    (first.data_dir.parent / "broken" / "cannot-start").unlink()
    second = alone()
    with second.client(timeout=60) as client:
        for model in (FULL, "broken"):
            assert client.deployments.wait(model, timeout=30).state == "ready"
            assert ask(client, model)[0] == model
        assert client.deployments.retrieve(FULL).engine == {"max_num_seqs": 3}
        outcome: dict[str, Any] = {}
        stream = slow_stream(second, FULL, 400, outcome)
        deletion = threading.Thread(target=lambda: take_down(second, FULL))
        deletion.start()
        wait_until(lambda: now(client) == "draining", 10)
    second.process.kill()
    second.process.wait()
    stream.join(30)
    deletion.join(30)
    wait_until(lambda: processes_of(second) == [], 20, "nothing outlives the supervisor")
    third = alone()
    with third.client(timeout=60) as client:
        wait_until(lambda: not is_there(client, FULL), 10)
        assert client.models.retrieve(FULL).state == "stored"
        assert client.deployments.wait("broken", timeout=30).state == "ready"


def take_down(service: Service, model: str) -> None:
    try:
        httpx.delete(f"{service.url}/v1/deployments/{model}", params={"timeout": 60}, timeout=30)
    except httpx.HTTPError:
        pass  # the service is killed meanwhile


@pytest.mark.soak
def test_a_deployable_that_is_no_longer_named_says_so(alone: Callable[[], Service]) -> None:
    first = alone()
    with first.client(timeout=60) as client:
        (first.data_dir.parent / "broken" / "cannot-start").unlink()
        client.deployments.create("broken").wait(timeout=30)
    first.stop()
    second = start_without_vllm(first.data_dir, "--kv-cache-memory", "16MiB")
    try:
        with second.client(timeout=60) as client:
            wait_engine(second)
            found = wait_until(lambda: reason(client, "broken"), 20)
            assert "--deployable broken=PATH_OR_HUB_ID" in found
            client.deployments.delete("broken")
    finally:
        second.stop()


def reason(client: Tunewright, model: str) -> str | None:
    return client.deployments.retrieve(model).reason
