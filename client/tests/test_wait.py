"""Waiting for jobs and for the service, through failures and restarts, and the output of progress."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from typing import Any

import pytest
from fake_server import FakeServer, Reply, Request, ok, refuse
from samples import JOB_PATH, event, job, page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Job, Tunewright
from tunewright_client._core.progress import ProgressReporter, ProgressState, duration, plain

EVENTS = f"{JOB_PATH}/events"
METRICS = {"step": 4, "total_steps": 10, "train_loss": 1.25, "tokens_per_second": 12345.6, "eta_seconds": 61}


def test_wait_returns_the_succeeded_job(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, ok(job("queued")), ok(job()), ok(job("paused")), ok(job("succeeded")))
    done = client.jobs.retrieve("ftjob-1").wait(poll_interval=0.01)
    assert isinstance(done, Job)
    assert done.fine_tuned_model == "ft:base:demo:1"
    assert done.refresh() == done
    assert len(server.sent("GET", EVENTS)) == 0


@pytest.mark.parametrize("state", ["pausing", "paused", "running"])
def test_the_status_of_a_job_is_its_exact_state(server: FakeServer, client: Tunewright, state: str) -> None:
    """The server's `status` has OpenAI's words, which lack those of a pause; older servers have no `state`."""
    server.on("POST", f"{JOB_PATH}/pause", ok(job("queued", state=state)), ok(job(state)))
    for found in (client.jobs.pause("ftjob-1"), client.jobs.pause("ftjob-1")):
        assert found.status is tw.JobStatus(state)
        assert Job.model_validate(found.model_dump()).status == state


def test_wait_raises_for_a_failed_or_cancelled_job(server: FakeServer, client: Tunewright) -> None:
    server.on(
        "GET",
        JOB_PATH,
        ok(job("failed", error={"code": "oom", "message": "too big", "param": "tuning.rank"})),
    )
    with pytest.raises(tw.JobFailedError, match="too big") as failed:
        client.jobs.wait("ftjob-1")
    assert (failed.value.code, failed.value.message, failed.value.param) == ("oom", "too big", "tuning.rank")
    assert failed.value.job.status == "failed"
    server.on("GET", JOB_PATH, ok(job("cancelled")))
    with pytest.raises(tw.JobCancelledError) as cancelled:
        client.jobs.wait("ftjob-1")
    assert cancelled.value.job.id == "ftjob-1"


def test_wait_raises_at_its_timeout(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, ok(job()))
    with pytest.raises(tw.WaitTimeoutError, match="still running") as caught:
        client.jobs.wait("ftjob-1", timeout=0.5, poll_interval=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.job.id, caught.value.job.status) == ("ftjob-1", "running")
    assert len(server.requests) > 2


def test_wait_survives_a_restart_of_the_server(server: FakeServer, client: Tunewright) -> None:
    stopped = threading.Event()

    def restart() -> None:
        server.stop()
        stopped.set()
        time.sleep(0.3)
        server.on("GET", JOB_PATH, refuse(503), Reply(abort=True), refuse(502), ok(job("succeeded")))
        server.start()

    def running(_: Request) -> Reply:
        if len(server.requests) == 3:
            threading.Thread(target=restart).start()
        return ok(job())

    server.on("GET", JOB_PATH, running)
    assert client.jobs.wait("ftjob-1", timeout=20, poll_interval=0.02).status == "succeeded"
    assert stopped.is_set()


def test_wait_for_an_unreachable_server_ends_at_the_timeout(server: FakeServer, client: Tunewright) -> None:
    server.stop()
    with pytest.raises(tw.WaitTimeoutError, match="could not be read") as caught:
        client.jobs.wait("ftjob-1", timeout=0.1, poll_interval=0.01)
    assert isinstance(caught.value.__cause__, tw.APIConnectionError)
    assert (caught.value.job.id, caught.value.job.status) == ("ftjob-1", "unknown")


def test_wait_raises_errors_that_waiting_does_not_cure(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, refuse(404))
    with pytest.raises(tw.NotFoundError):
        client.jobs.wait("ftjob-1")
    server.on("GET", JOB_PATH, refuse(500))
    with pytest.raises(tw.ServerError):
        client.jobs.wait("ftjob-1", poll_interval=0.01)
    assert len(server.requests) == 1 + 3


def scripted_events(server: FakeServer, *counts: int) -> None:
    """At each request the job has the next of `counts` events; at the last one it has succeeded. A page has two
    events, newest first."""
    looks = iter(counts)
    state = {"count": 0}

    def look(_: Request) -> Reply:
        state["count"] = next(looks)
        return ok(job("succeeded" if state["count"] == counts[-1] else "running"))

    def events(request: Request) -> Reply:
        newest = int(request.query.get("after", f"-{state['count'] + 1}").rpartition("-")[2]) - 1
        items = [event(number) for number in range(newest, max(newest - 2, 0), -1)]
        return ok(page(items, has_more=newest > 2))

    server.on("GET", JOB_PATH, look)
    server.on("GET", EVENTS, events)


def test_on_event_gets_every_event_once_and_in_order(server: FakeServer, client: Tunewright) -> None:
    scripted_events(server, 0, 5, 5, 6, 9)
    seen: list[str] = []
    client.jobs.wait("ftjob-1", poll_interval=0.01, on_event=lambda item: seen.append(item.id))
    assert seen == [f"ftevent-{number}" for number in range(1, 10)]


def test_on_event_may_be_a_coroutine_function(server: FakeServer) -> None:
    scripted_events(server, 1, 4)
    seen: list[str] = []

    async def on_event(item: tw.JobEvent) -> None:
        await asyncio.sleep(0)
        seen.append(item.id)

    async def run() -> tw.AsyncJob:
        async with AsyncTunewright(server.url) as client:
            return await client.jobs.wait("ftjob-1", poll_interval=0.01, on_event=on_event)

    done = asyncio.run(run())
    assert done.is_final
    assert seen == [f"ftevent-{number}" for number in range(1, 5)]


def test_an_error_of_the_callback_is_raised(server: FakeServer, client: Tunewright) -> None:
    scripted_events(server, 1, 2)

    def fails(_: tw.JobEvent) -> None:
        raise tw.APIConnectionError("mine")

    with pytest.raises(tw.APIConnectionError, match="mine"):
        client.jobs.wait("ftjob-1", poll_interval=0.01, on_event=fails)


def test_a_service_that_is_not_ready_is_no_error(server: FakeServer, client: Tunewright) -> None:
    waiting: dict[str, Any] = {
        "ready": False,
        "components": {"engine": {"ready": False, "state": "starting", "reason": "loads"}},
    }
    server.on("GET", "/ready", ok(waiting, 503))
    state = client.ready()
    assert not state.ready
    assert not state
    assert state.components["engine"].reason == "loads"
    assert len(server.requests) == 1
    with pytest.raises(tw.WaitTimeoutError, match="engine: loads"):
        client.wait_ready(timeout=0.05, poll_interval=0.01)
    server.on("GET", "/ready", ok(waiting, 503), Reply(abort=True), ok({"ready": True, "components": {}}))
    assert client.wait_ready(timeout=5, poll_interval=0.01).ready
    server.stop()
    with pytest.raises(tw.WaitTimeoutError, match="connection failed"):
        client.wait_ready(timeout=0.05, poll_interval=0.01)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(status: str = "running", **fields: Any) -> Job:
    return Job.model_validate(job(status, **fields))


def metrics(number: int) -> tw.JobEvent:
    return tw.JobEvent.model_validate(event(number, type="metrics", data=METRICS))


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    screen = Terminal()
    reporter = ProgressReporter(screen)
    reporter.update(record(progress=None), [metrics(1)])
    assert screen.getvalue() == (
        "ftjob-1  running  [##########--------------]  4/10  40%  loss 1.2500  12,346 tok/s  ETA 1m01s"
    )
    warning = tw.JobEvent.model_validate(event(2, level="warn", message="slow\x1b[2J disk"))
    reporter.update(record("succeeded", progress={"step": 10, "total_steps": 10}), [warning])
    reporter.close()
    reporter.close()
    assert screen.getvalue().split("\r\x1b[K", 1)[1] == (
        "ftjob-1  warn: slow [2J disk\n"
        "ftjob-1  succeeded  [########################]  10/10  100%  loss 1.2500  12,346 tok/s\n"
    )


def test_the_bar_is_not_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    screen = Terminal()
    ProgressReporter(screen).update(record(), [])
    assert len(screen.getvalue()) == 29


def test_progress_is_lines_without_a_terminal() -> None:
    now = [0.0]
    out = io.StringIO()
    reporter = ProgressReporter(out, clock=lambda: now[0])
    for seconds, status in (
        (0, "queued"),
        (1, "running"),
        (10, "running"),
        (31, "running"),
        (32, "succeeded"),
    ):
        now[0] = seconds
        reporter.update(record(status), [])
    reporter.server_unavailable(OSError("away"))
    reporter.close()
    line = "3/10  30%  loss 1.5000"
    assert out.getvalue().splitlines() == [
        f"ftjob-1  queued  {line}  ETA 1m10s",
        f"ftjob-1  running  {line}  ETA 1m10s",
        f"ftjob-1  running  {line}  ETA 1m10s",
        f"ftjob-1  succeeded  {line}",
    ]


def test_progress_is_written_to_stderr(
    server: FakeServer, client: Tunewright, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", JOB_PATH, ok(job()), ok(job("succeeded")))
    server.on("GET", EVENTS, ok(page([event(1, type="metrics", data=METRICS)])))
    client.jobs.wait("ftjob-1", poll_interval=0.01, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "12,346 tok/s" in shown.err
    assert len(shown.err.splitlines()) == 2


def test_a_closed_stderr_does_not_end_the_wait() -> None:
    screen = Terminal()
    screen.close()
    broken = io.StringIO()
    reporter = ProgressReporter(broken)
    broken.close()
    reporter.update(record(), [])
    reporter.close()


def test_durations_have_one_or_two_units() -> None:
    assert [duration(seconds) for seconds in (-1, 42.4, 192, 18_420)] == ["0s", "42s", "3m12s", "5h07m"]


def test_text_of_the_server_cannot_control_the_terminal() -> None:
    assert plain("a\nb\x1b[0m\u202e") == "a b [0m "


def test_the_finished_share_is_unknown_or_at_most_one() -> None:
    assert ProgressState().fraction is None
    assert ProgressState(step=20, total_steps=10).fraction == 1


def test_a_record_without_a_client_says_so() -> None:
    with pytest.raises(tw.TunewrightError, match="did not come from a client"):
        record().refresh()
