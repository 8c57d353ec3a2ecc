"""Batches by the whole service with a stand-in for vLLM: by the stock clients, killed, cancelled, and beside others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE, fill, start_without_vllm

from kills import tree
from tunewright_client import BadRequestError, Batch, JobCancelledError, Tunewright

SCRIPT = Path(__file__).parent / "openai_batches.py"
OPENAI_2 = Path(sys.prefix) / "openai-2"
ADAPTER = f"ft:{BASE}:s:1"
ENDPOINT = "/v1/completions"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("batches") / "data"
    fill(data_dir)
    running = start_without_vllm(data_dir, environment={"STAND_IN_SECONDS": "0.1"})
    try:
        with running.client(max_retries=0) as opened:
            opened.wait_ready(timeout=300)
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened


@pytest.mark.parametrize("major", ["3", "2"])
def test_the_stock_client_has_requests_answered(service: Service, client: Tunewright, major: str) -> None:
    environment = dict(os.environ)
    if major == "2":
        assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
        environment["PYTHONPATH"] = str(OPENAI_2)
    client.aliases.set("stable", ADAPTER, wait=False)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"{service.url}/v1", BASE, "stable"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"ok {major}."), done.stdout

    def answered() -> int:
        buckets = client.usage.completions(group_by=["batch"])
        return sum(one.num_model_requests for bucket in buckets for one in bucket.results if one.batch)

    wait_until(lambda: answered() >= 2, 60, "what the batch has used")


def requests(folder: Path, count: int) -> Path:
    path = folder / "requests.jsonl"
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": ADAPTER, "prompt": f"{n}"},
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def done(batch: Batch) -> int:
    counts = batch.request_counts
    return counts.completed + counts.failed


def pids(service: Service, title: str) -> list[int]:
    return [
        pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(f"tunewright: {title}")
    ]


def test_killed_with_its_service_it_has_each_result_once(
    service: Service, client: Tunewright, tmp_path: Path
) -> None:
    made = client.batches.create(requests(tmp_path, 300), ENDPOINT)
    output = service.data_dir / "jobs" / made.id / "work" / "output.jsonl"

    def lines() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    with pytest.raises(BadRequestError, match="is needed by job"):
        client.files.delete(made.input_file_id)
    for title in (f"batch {made.id}", "scheduler", "api", f"batch {made.id}"):
        before = lines()
        wait_until(lambda before=before: lines() > before + 5, 300, "answers")
        victims = pids(service, title)
        assert victims, f"no {title}"
        os.kill(victims[0], signal.SIGKILL)
    ended = made.wait(timeout=600)
    assert (ended.status, done(ended), ended.request_counts.total) == ("completed", 300, 300)
    results = ended.results()
    assert sorted(result.custom_id for result in results) == sorted(f"r{n}" for n in range(300))
    assert all(result.is_answered for result in results)
    steps = [event.metrics.step for event in ended.events(limit=1000) if event.metrics is not None]
    assert steps == sorted(set(steps), reverse=True)


def test_it_is_cancelled_with_what_it_has_beside_live_traffic(
    service: Service, client: Tunewright, tmp_path: Path
) -> None:
    made = client.batches.create(requests(tmp_path, 5000), ENDPOINT, metadata={"kept": "yes"})
    wait_until(lambda: done(made.refresh()) > 10, 300, "answers")
    assert client.completions.create(BASE, "live").choices[0].text, "a live request is not held up"
    assert made.cancel().status in ("cancelling", "cancelled")
    with pytest.raises(JobCancelledError) as raised:
        made.wait(timeout=300)
    ended = raised.value.job
    assert isinstance(ended, Batch)
    counts = ended.request_counts
    assert counts.completed > 10
    assert counts.completed + counts.failed == counts.total == 5000
    results = ended.results()
    assert len({result.custom_id for result in results}) == len(results) == 5000
    assert {(result.error or {}).get("code") for result in results if not result.is_answered} == {
        "batch_cancelled"
    }
    assert [batch.id for batch in client.batches.list(metadata={"kept": "yes"})] == [made.id]
    assert made.cancel().status == "cancelled", "again, it changes nothing"


def test_the_commands_of_the_shell(service: Service, tmp_path: Path) -> None:
    environment = {**os.environ, "TUNEWRIGHT_BASE_URL": service.url}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "tunewright", "batches", *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    file = str(requests(tmp_path, 2))
    id = run("create", "--file", file, "--endpoint", ENDPOINT)
    assert json.loads(run("watch", id, "--json").splitlines()[-1])["status"] == "completed"
    assert sorted(line.partition("  ")[0] for line in run("results", id).splitlines()) == ["r0", "r1"]
    assert "2/2" in run("list", "--limit", "1")


def test_what_it_asks_is_used_by_the_key_that_has_created_it(service: Service, tmp_path: Path) -> None:
    """The last one here: without a key nothing is answered any more."""
    with service.client() as open_to_all:
        admin = open_to_all.admin_api_keys.create("admin").value
    with Tunewright(service.url, api_key=admin) as operator:
        key = operator.api_keys.create("default", "team")
        with Tunewright(service.url, api_key=key.value) as client:
            client.batches.create(requests(tmp_path, 3), ENDPOINT).wait(timeout=300)

        def answered() -> int:
            buckets = operator.usage.completions(api_key_ids=[key.id], batch=True)
            return sum(one.num_model_requests for bucket in buckets for one in bucket.results)

        wait_until(lambda: answered() == 3, 60, "what the key has used")
        logs = list(operator.audit_logs.list(actor_ids=[key.id], oldest_first=True))
        done = [(one.type, one.request.path if one.request else None) for one in logs]
        assert done == [
            ("resource.created", "/v1/files"), ("resource.created", "/v1/batches"), ("job.started", None)
        ]  # fmt: skip
