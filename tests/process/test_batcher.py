"""The process of a batch, on a gateway of the test's: killed at any moment, each request has one result in the end."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunewright.batcher import asking
from tunewright.batcher.folder import Batched, BatchSpec, Ending, end_file, errors_file, output_file
from tunewright.batcher.requests import requests_of
from tunewright.batcher.results import Results
from tunewright.jobs.folder import JobFolder

pytestmark = pytest.mark.anyio

Answer = Callable[[dict[str, Any]], Awaitable[web.Response]]


@asynccontextmanager
async def gateway(socket: Path, answer: Answer) -> AsyncIterator[None]:
    async def handle(request: web.Request) -> web.Response:
        return await answer({**await request.json(), "sticky": request.query["sticky"]})

    app = web.Application()
    app.router.add_post("/batch", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


def batch(folder: Path, requests: int, *, models: int = 1) -> JobFolder:
    file = folder / "requests.jsonl"
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions",
         "body": {"model": f"m{n % models}", "prompt": str(n)}}
        for n in range(requests)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = JobFolder(folder / "job")
    job.write_spec(
        BatchSpec(
            job_id="batch-1",
            file=str(file),
            endpoint="/v1/completions",
            project="default",
            socket=str(folder / "s"),
            request_timeout=60,
            expires_at=time.time() + 3600,
            at_once=8,
            memory_bytes=2**31,
        )
    )
    return job


async def run(job: JobFolder) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tunewright.batcher", str(job.path), stderr=asyncio.subprocess.DEVNULL
    )


def results(job: JobFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of both files, in which each request is once."""
    found = [
        [json.loads(line) for line in path(job).read_text().splitlines()]
        for path in (output_file, errors_file)
    ]
    counts = Counter(line["custom_id"] for lines in found for line in lines)
    assert set(counts.values()) <= {1}, counts.most_common(3)
    return found[0], found[1]


def outcome(job: JobFolder) -> Batched:
    found = job.read_result(Batched)
    assert found is not None
    return found


async def test_killed_again_and_again_no_request_is_lost_or_doubled(tmp_path: Path) -> None:
    job, chance, asked = batch(tmp_path, 400), random.Random(16), 0
    progress = asyncio.Event()

    async def answer(body: dict[str, Any]) -> web.Response:
        nonlocal asked
        asked += 1
        progress.set()
        await asyncio.sleep(0.002)
        if int(body["prompt"]) % 7 == 0:
            return web.json_response({"error": {"message": "no", "code": "bad"}}, status=400)
        return web.json_response({"model": body["model"], "choices": [{"text": body["prompt"] * 50}]})

    async with gateway(tmp_path / "s", answer):
        for _ in range(4):
            process = await run(job)
            target = asked + chance.randrange(1, 60)
            while asked < target:
                progress.clear()
                await asyncio.wait_for(progress.wait(), 300)
            process.kill()
            await process.wait()
        assert job.read_outcome() is None, "it was killed before its end"
        assert await (await run(job)).wait() == 0

    answers, errors = results(job)
    assert (len(answers), len(errors)) == (342, 58)
    for line in answers:
        assert line["response"]["body"]["choices"][0]["text"] == line["custom_id"].removeprefix("r") * 50
    assert {line["response"]["body"]["error"]["code"] for line in errors} == {"bad"}
    end = outcome(job)
    assert (end.ending, end.completed, end.failed) == (Ending.COMPLETED, 342, 58)
    assert asked < 400 + 4 * 8 + 1, "what has a result is not asked again"


def test_cut_off_at_any_byte_it_goes_on(tmp_path: Path) -> None:
    """A line is written with one call; what a killed process or a lost disk leaves of it is cut off."""
    job = JobFolder(tmp_path)
    whole = Results(job, "batch-1")
    whole.answer("a", {"text": "ä\n"})
    whole.answer("b", {})
    whole.fail("c", "batch_expired", "too late")
    whole.close()
    content = output_file(job).read_bytes()
    first = content.index(b"\n") + 1
    for end in range(len(content) + 1):
        for tail in (b"", b"\0\0\0\n"):
            output_file(job).write_bytes(content[:end] + tail)
            found = Results(job, "batch-1")
            expected = {"c"} | ({"a"} if end >= first else set()) | ({"b"} if end == len(content) else set())
            assert (found.known, found.failed) == (expected, 1), end
            if "a" not in found.known:
                found.answer("a", {})
            found.close()
            lines = [json.loads(line)["custom_id"] for line in output_file(job).read_bytes().splitlines()]
            assert lines == (["a", "b"] if end == len(content) else ["a"])


@pytest.mark.parametrize("why", ["cancelled", "expired"])
async def test_it_ends_early_with_what_it_has(tmp_path: Path, why: str) -> None:
    job = batch(tmp_path, 50)
    answered = asyncio.Event()

    async def answer(body: dict[str, Any]) -> web.Response:
        if int(body["prompt"]) < 5:
            return web.json_response({})
        answered.set()
        await asyncio.sleep(3600)
        raise AssertionError("it is not waited for")

    async with gateway(tmp_path / "s", answer):
        process = await run(job)
        await asyncio.wait_for(answered.wait(), 300)
        while output_file(job).read_bytes().count(b"\n") < 5:
            await asyncio.sleep(0.01)
        if why == "cancelled":
            end_file(job).touch()
        else:  # while no process ran
            process.kill()
            await process.wait()
            job.write_spec(job.read_spec(BatchSpec).model_copy(update={"expires_at": time.time() - 1}))
            process = await run(job)
        assert await process.wait() == 0
    answers, errors = results(job)
    assert sorted(line["custom_id"] for line in answers) == [f"r{n}" for n in range(5)]
    assert len(errors) == 45
    assert {line["error"]["code"] for line in errors} == {f"batch_{why}"}
    end = outcome(job)
    assert (end.ending, end.completed, end.failed) == (Ending(why), 5, 45)


async def test_what_cannot_be_answered_now_is_asked_again_and_holds_up_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(asking, "_LONGEST_WAIT", 0.01)
    job = batch(tmp_path, 30, models=3)
    spec = job.read_spec(BatchSpec)
    tries, kept = Counter[str](), Results(job, spec.job_id)

    async def answer(body: dict[str, Any]) -> web.Response:
        tries[body["prompt"]] += 1
        if body["prompt"] == "2":
            return web.json_response({"error": {"message": "it fails", "code": "x"}}, status=500)
        if body["model"] == "m1" and len(kept.known) < 20:  # until all others have a result
            return web.json_response({"error": {"message": "it starts", "code": "x"}}, status=503)
        return web.json_response({"prompt": body["prompt"], "sticky": body["sticky"]})

    with Path(spec.file).open("rb") as file:
        requests = list(requests_of(file))
        async with gateway(tmp_path / "s", answer):
            work = asking.Asking(spec, requests, file, kept, lambda: None)
            await asyncio.wait_for(work.run(), 300)
    answers, errors = results(job)
    assert (len(answers), [line["custom_id"] for line in errors]) == (29, ["r2"])
    assert all(f"r{line['response']['body']['prompt']}" == line["custom_id"] for line in answers)
    assert all(line["response"]["body"]["sticky"] == line["custom_id"] for line in answers)
    assert (errors[0]["response"]["status_code"], tries["2"]) == (500, 8)
    assert max(tries[str(n)] for n in range(1, 30, 3)) > 8, "what is not ready yet is no fault"


async def test_a_full_disk_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FULL_DISK_WAIT", 0.001)
    kept, full = Results(JobFolder(tmp_path), "batch-1"), [True, True, False]

    def write(id: str) -> None:
        if full.pop(0):
            raise OSError(errno.ENOSPC, "full")
        kept.answer(id, {})

    await asking.keep(write, "a")
    assert (kept.known, full) == ({"a"}, [])
