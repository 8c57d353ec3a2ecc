"""Retries, idempotency keys, errors and pages."""

from __future__ import annotations

import asyncio
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest
from fake_server import FakeServer, Reply, Request, ok, refuse
from samples import JOB_PATH, file, job, page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright
from tunewright_client._core.retry import backoff
from tunewright_client._errors import parse_retry_after

JOBS = "/v1/fine_tuning/jobs"


def test_a_retry_keeps_the_idempotency_key(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", JOBS, Reply(abort=True), refuse(503), ok(job("queued")))
    made = client.jobs.create("base", "file-1", tuning={"rank": 16}, suffix="demo")
    assert made.status == "queued"
    sent = server.sent("POST", JOBS)
    assert len(sent) == 3
    assert len({request.headers["idempotency-key"] for request in sent}) == 1
    assert sent[0].json == {
        "model": "base",
        "training_file": "file-1",
        "tuning": {"rank": 16},
        "suffix": "demo",
    }
    client.jobs.create("base", "file-1")
    assert server.requests[-1].headers["idempotency-key"] != sent[0].headers["idempotency-key"]
    client.jobs.create("base", "file-1", idempotency_key="mine")
    assert server.requests[-1].headers["idempotency-key"] == "mine"


def test_a_job_names_its_method_and_beta(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", JOBS, ok(job("queued")))
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    for given, sent in (
        ({"method": "dpo", "beta": 0.2}, dpo),
        ({"method": dpo}, dpo),
        ({"method": "dpo"}, {"type": "dpo"}),
        ({"method": "kto", "beta": 0.2}, {"type": "kto", "kto": {"hyperparameters": {"beta": 0.2}}}),
        ({"method": "orpo", "beta": 0.2}, {"type": "orpo", "orpo": {"hyperparameters": {"beta": 0.2}}}),
        ({"method": "reward"}, {"type": "reward"}),
        ({"method": "supervised"}, {"type": "supervised"}),
    ):
        client.jobs.create("base", "file-1", **given)
        assert server.requests[-1].json["method"] == sent
    for wrong in ({"beta": 0.2}, {"method": "supervised", "beta": 0.2}, {"method": dpo, "beta": 0.2}):
        with pytest.raises(ValueError, match="beta"):
            client.jobs.create("base", "file-1", **wrong)


def test_a_job_with_a_grader_is_one_of_reinforcement(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", JOBS, ok(job("queued")))
    grader = {"type": "regex", "name": "number", "pattern": "[0-9]"}
    for given in ({}, {"method": "reinforcement"}):
        client.jobs.create("base", "file-1", grader=grader, **given)
        assert server.requests[-1].json["method"] == {
            "type": "reinforcement",
            "reinforcement": {"grader": grader},
        }
    client.jobs.create("base", "file-1", grader=grader, beta=0.1)
    assert server.requests[-1].json["method"]["reinforcement"]["hyperparameters"] == {"beta": 0.1}
    for wrong in ("dpo", {"type": "reinforcement"}):
        with pytest.raises(ValueError, match="grader"):
            client.jobs.create("base", "file-1", grader=grader, method=wrong)


def test_a_job_asks_for_its_evaluations(server: FakeServer, client: Tunewright, tmp_path: Path) -> None:
    rows = tmp_path / "test.jsonl"
    rows.write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(2)))
    figure = {"metric": "accuracy", "value": 0.75, "gain": 0.25}
    point = {
        "at": "end",
        "measure": "data",
        "evaluation": "eval-1",
        "status": "succeeded",
        "figures": [figure],
    }
    server.on("POST", JOBS, ok({**job("succeeded"), "evaluation": {"points": [point], "verdict": "pass"}}))
    evaluate = {
        "data": rows, "metrics": "accuracy", "suites": "mmlu", "at": "end", "judge": "qwen",
        "require": {"metric": "accuracy", "max_drop": 0.02},
    }  # fmt: skip
    steps = [{"training_file": "file-1", "evaluate": {"data": rows, "suites": [{"name": "gsm8k"}]}}]

    made = client.jobs.create("base", "file-1", evaluate=evaluate, steps=steps)

    sent = server.sent("POST", JOBS)[0].json
    assert sent["evaluate"] == {
        "data": "file-2", "metrics": ["accuracy"], "suites": [{"name": "mmlu"}], "at": ["end"],
        "judge": {"model": "qwen"}, "require": [{"metric": "accuracy", "max_drop": 0.02}],
    }  # fmt: skip
    assert sent["steps"][0]["evaluate"] == {"data": "file-2", "suites": [{"name": "gsm8k"}]}
    assert made.evaluation is not None
    assert (made.evaluation.verdict, made.evaluation.points[0].figures[0].gain) == ("pass", 0.25)


def test_a_retry_of_the_asyncio_client_keeps_the_idempotency_key(server: FakeServer) -> None:
    server.on("POST", JOBS, Reply(abort=True), refuse(500), ok(job("queued")))

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            made = await client.jobs.create("base", "file-1")
            assert isinstance(made, tw.AsyncJob)

    asyncio.run(run())
    sent = server.sent("POST", JOBS)
    assert len(sent) == 3
    assert len({request.headers["idempotency-key"] for request in sent}) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_retryable_status_is_retried_max_retries_times(
    server: FakeServer, client: Tunewright, status: int
) -> None:
    server.on("GET", JOB_PATH, refuse(status))
    with pytest.raises(tw.APIStatusError) as caught:
        client.jobs.retrieve("ftjob-1")
    assert caught.value.status_code == status
    assert len(server.requests) == 3
    with pytest.raises(tw.APIStatusError):
        client.with_options(max_retries=0).jobs.retrieve("ftjob-1")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, tw.BadRequestError),
        (401, tw.AuthenticationError),
        (403, tw.PermissionDeniedError),
        (404, tw.NotFoundError),
        (409, tw.ConflictError),
        (413, tw.PayloadTooLargeError),
        (418, tw.APIStatusError),
        (422, tw.UnprocessableEntityError),
        (429, tw.RateLimitError),
        (500, tw.ServerError),
        (503, tw.ServiceUnavailableError),
    ],
)
def test_every_error_status_has_its_error_type(
    server: FakeServer, status: int, kind: type[tw.APIStatusError]
) -> None:
    server.on("GET", JOB_PATH, refuse(status, "it is so", "the_code", x_request_id="req-1", retry_after="7"))
    with Tunewright(server.url, max_retries=0) as client, pytest.raises(tw.APIStatusError) as caught:
        client.jobs.retrieve("ftjob-1")
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.type, error.param, error.code) == ("it is so", "t", "p", "the_code")
    assert (error.status_code, error.request_id, error.retry_after) == (status, "req-1", 7.0)
    assert len(server.requests) == 1
    assert str(error) == f"it is so ({status}, the_code, request req-1)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>bad gateway</html>", "<html>bad gateway</html>"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "plain"}', "plain"),
        (b"[]", "[]"),
        (b"", "Not Found"),
    ],
)
def test_an_error_answer_of_a_proxy_gives_a_message(
    server: FakeServer, client: Tunewright, body: bytes, message: str
) -> None:
    server.on("GET", JOB_PATH, Reply(404, body))
    with pytest.raises(tw.NotFoundError) as caught:
        client.jobs.retrieve("ftjob-1")
    assert caught.value.message == message


def test_a_retry_waits_as_long_as_retry_after_asks(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, refuse(429, retry_after="0.3"), ok(job()))
    started = time.monotonic()
    client.jobs.retrieve("ftjob-1")
    assert time.monotonic() - started >= 0.3


def test_x_should_retry_overrides_the_status(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, refuse(504, code="request_timeout", x_should_retry="false"), ok(job()))
    with pytest.raises(tw.ServerError) as caught:
        client.jobs.retrieve("ftjob-1")
    assert (caught.value.status_code, caught.value.should_retry) == (504, False)
    assert len(server.requests) == 1
    server.on("GET", JOB_PATH, refuse(400, x_should_retry="true"), ok(job()))
    assert client.jobs.retrieve("ftjob-1").id == "ftjob-1"
    server.on("GET", JOB_PATH, refuse(503, x_should_retry="perhaps"), ok(job()))
    assert client.jobs.retrieve("ftjob-1").id == "ftjob-1"


def test_a_full_queue_is_retried_and_then_raised(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", JOBS, refuse(429, code="too_many_jobs", retry_after="0.3"), ok(job("queued")))
    started = time.monotonic()
    assert client.jobs.create("base", "file-1").status == "queued"
    assert time.monotonic() - started >= 0.3
    server.on("POST", JOBS, refuse(429, code="too_many_jobs", retry_after="0"))
    with pytest.raises(tw.RateLimitError) as caught:
        client.jobs.create("base", "file-1")
    assert caught.value.code == "too_many_jobs"


def test_a_long_retry_after_is_raised_at_once(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, refuse(429, retry_after="3600"))
    with pytest.raises(tw.RateLimitError) as caught:
        client.jobs.retrieve("ftjob-1")
    assert caught.value.retry_after == 3600
    assert len(server.requests) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert parse_retry_after("2", now) == 2
    assert parse_retry_after(" 1.5 ", now) == 1.5
    assert parse_retry_after(format_datetime(now + timedelta(seconds=30), usegmt=True), now) == 30
    assert parse_retry_after("Mon, 31 Dec 2029 23:00:00 GMT", now) == 0
    for unreadable in (None, "", "soon", "nan", "inf"):
        assert parse_retry_after(unreadable, now) is None


def test_the_backoff_grows_with_jitter_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright_client._core.retry.BACKOFF_SECONDS", 0.5)
    for attempt, full in enumerate((0.5, 1, 2, 4, 8, 8, 8)):
        delays = {backoff(attempt) for _ in range(20)}
        assert all(full / 2 <= delay <= full for delay in delays)
        assert len(delays) > 1
    assert backoff(10_000) <= 8


def test_a_refused_connection_is_a_connection_error() -> None:
    fake = FakeServer()
    fake.stop()
    with Tunewright(fake.url) as client, pytest.raises(tw.APIConnectionError) as caught:
        client.health()
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def frames_of_the_package(error: BaseException) -> list[str]:
    package = str(Path(tw.__file__).parent)
    return [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(package)
    ]


def test_a_failing_call_shows_four_frames_of_the_package(server: FakeServer, client: Tunewright) -> None:
    with pytest.raises(tw.NotFoundError) as blocking:
        client.jobs.retrieve("ftjob-1")

    async def run() -> None:
        async with AsyncTunewright(server.url) as other:
            await other.jobs.retrieve("ftjob-1")

    with pytest.raises(tw.NotFoundError) as other:
        asyncio.run(run())
    frames = ["retrieve", "fetch", "send", "_attempt"]
    assert frames_of_the_package(blocking.value) == frames
    assert frames_of_the_package(other.value) == frames


def test_a_timeout_is_retried_and_then_raised(server: FakeServer) -> None:
    def slow(_: Request) -> Reply:
        time.sleep(0.3)
        return ok(job())

    server.on("GET", JOB_PATH, slow)
    with (
        Tunewright(server.url, timeout=0.05, max_retries=1) as client,
        pytest.raises(tw.APITimeoutError),
    ):
        client.jobs.retrieve("ftjob-1")
    assert len(server.requests) == 2


def test_an_answer_of_another_server_is_an_invalid_response(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOB_PATH, Reply(200, b"<html>hello</html>"))
    with pytest.raises(tw.InvalidResponseError, match="base_url"):
        client.jobs.retrieve("ftjob-1")


def test_unknown_fields_and_states_of_a_newer_server_are_kept(server: FakeServer, client: Tunewright) -> None:
    server.on(
        "GET", JOB_PATH, ok(job("hibernating", brand_new={"a": 1}, tuning={"type": "galore", "proj": 8}))
    )
    read = client.jobs.retrieve("ftjob-1")
    assert read.status == "hibernating"
    assert not read.is_final
    assert read.model_extra == {"brand_new": {"a": 1}}
    assert read.tuning is not None
    assert read.tuning.model_extra == {"proj": 8}


def test_iterating_a_page_requests_the_following_pages(server: FakeServer, client: Tunewright) -> None:
    pages = {None: page([file(1), file(2)], True), "file-2": page([file(3)], True), "file-3": page([])}
    server.on("GET", "/v1/files", lambda request: ok(pages[request.query.get("after")]))
    first = client.files.list(purpose="fine-tune", limit=2)
    assert [item.id for item in first.data] == ["file-1", "file-2"]
    assert len(server.requests) == 1
    assert [item.id for item in first] == ["file-1", "file-2", "file-3"]
    assert server.requests[-1].query == {"purpose": "fine-tune", "limit": "2", "after": "file-3"}

    async def run() -> list[str]:
        async with AsyncTunewright(server.url) as other:
            whole = [item.id async for item in other.files.list()]
            assert whole == [item.id async for item in await other.files.list()]
            return whole

    assert asyncio.run(run()) == ["file-1", "file-2", "file-3"]


def test_a_repeated_cursor_ends_the_list(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", "/v1/files", ok(page([file(1)], True)))
    assert len(list(client.files.list())) == 2
