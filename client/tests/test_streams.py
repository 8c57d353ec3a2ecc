"""Streams of generations and events, and downloads: complete, interrupted, failing, aborted."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, Request, ok, refuse, sse
from samples import DONE, JOB_PATH, chunk, data_event, event

import tunewright_client as tw
from tunewright_client import AsyncStream, AsyncTunewright, Stream, Tunewright

CHAT = "/v1/chat/completions"
EVENTS = f"{JOB_PATH}/events"
HELLO = [{"role": "user", "content": "hello"}]


def test_an_answer_without_streaming_is_whole(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", CHAT, ok({"id": "1", "choices": [{"message": {"role": "assistant", "content": "hi"}}]}))
    server.on(
        "POST",
        "/v1/completions",
        ok({"id": "1", "choices": [{"text": " world"}], "usage": {"total_tokens": 3}}),
    )
    assert client.chat.create("m", HELLO, temperature=0).text == "hi"
    assert server.requests[-1].json == {"model": "m", "messages": HELLO, "temperature": 0}
    assert client.completions.create("m", "hello").text == " world"


def test_a_streamed_answer_is_read_from_pieces_of_any_size(server: FakeServer, client: Tunewright) -> None:
    body = b": hello\r\n\r\n" + (chunk("a") + chunk("ü")).replace(b"\n", b"\r\n") + chunk("c") + DONE
    server.on("POST", CHAT, sse(*(body[at : at + 5] for at in range(0, len(body), 5))))
    with client.chat.create("m", HELLO, stream=True, max_tokens=3) as stream:
        assert stream.response is not None
        assert [part.text for part in stream] == ["a", "ü", "c"]
        assert list(stream) == []
    assert server.requests[-1].json["stream"] is True
    assert server.requests[-1].headers["accept"] == "text/event-stream"


def test_a_text_completion_is_streamed(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", "/v1/completions", sse(data_event({"choices": [{"index": 0, "text": "x"}]}), DONE))
    assert [part.text for part in client.completions.create("m", "p", stream=True)] == ["x"]


def test_the_asyncio_client_streams_and_retries_before_the_first_byte(server: FakeServer) -> None:
    server.on("POST", CHAT, sse(abort=True), sse(chunk("a"), chunk("b") + DONE))

    async def run() -> list[str]:
        async with (
            AsyncTunewright(server.url) as client,
            await client.chat.create("m", HELLO, stream=True) as stream,
        ):
            return [part.text async for part in stream]

    assert asyncio.run(run()) == ["a", "b"]
    assert len(server.requests) == 2


def test_a_stream_is_retried_before_its_first_byte_with_the_same_key(
    server: FakeServer, client: Tunewright
) -> None:
    server.on("POST", CHAT, refuse(503), sse(abort=True), sse(chunk("a"), DONE))
    assert [part.text for part in client.chat.create("m", HELLO, stream=True)] == ["a"]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize("reply", [sse(chunk("a"), abort=True), sse(chunk("a"))])
def test_a_stream_is_not_retried_after_its_first_byte(
    server: FakeServer, client: Tunewright, reply: Reply
) -> None:
    server.on("POST", CHAT, reply)
    stream = client.chat.create("m", HELLO, stream=True)
    assert next(stream).text == "a"
    with pytest.raises(tw.StreamInterruptedError):
        next(stream)
    assert list(stream) == []
    assert len(server.requests) == 1


def test_a_stream_without_a_first_byte_is_interrupted(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", CHAT, sse())
    with pytest.raises(tw.StreamInterruptedError):
        client.chat.create("m", HELLO, stream=True)
    assert len(server.requests) == 3


def test_an_error_before_the_stream_is_raised_by_create(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", CHAT, refuse(404, "no such model", "model_not_found"))
    with pytest.raises(tw.NotFoundError) as caught:
        client.chat.create("m", HELLO, stream=True)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "type": "server_error", "code": None}, tw.ServerError),
        ({"message": "m", "type": "BadRequestError", "code": 400}, tw.BadRequestError),
        ({"message": "m", "type": "invalid_request_error", "code": "too_long"}, tw.BadRequestError),
        ({"message": "m", "type": "service_unavailable", "code": "engine_down"}, tw.ServiceUnavailableError),
        ({"message": "m", "type": "server_error", "code": "engine_unavailable"}, tw.ServiceUnavailableError),
        ({"message": "m", "type": "invalid_request_error", "code": "not_found"}, tw.NotFoundError),
        ("m", tw.ServerError),
    ],
)
def test_an_error_event_raises_its_error_type(
    server: FakeServer, client: Tunewright, error: object, kind: type[tw.APIStatusError]
) -> None:
    server.on("POST", CHAT, sse(chunk("a"), data_event({"error": error}), DONE))
    stream = client.chat.create("m", HELLO, stream=True)
    next(stream)
    with pytest.raises(kind) as caught:
        next(stream)
    assert type(caught.value) is kind
    assert caught.value.message == "m"


def test_an_event_that_is_not_json_is_an_invalid_response(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", CHAT, sse(data_event("{nonsense"), DONE))
    with pytest.raises(tw.InvalidResponseError, match="nonsense"):
        next(client.chat.create("m", HELLO, stream=True))


def test_closing_a_stream_aborts_it_in_the_server(server: FakeServer) -> None:
    aborted = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield chunk("a" * 1000)
        finally:
            aborted.set()

    server.on("POST", CHAT, Reply(headers={"content-type": "text/event-stream"}, chunks=endless()))
    with Tunewright(server.url) as client, client.chat.create("m", HELLO, stream=True) as stream:
        next(stream)
        stream.close()
        assert aborted.wait(5)
        assert list(stream) == []


def test_closing_a_stream_from_another_thread_ends_the_reading_loop(
    server: FakeServer, client: Tunewright
) -> None:
    def slowly(pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            time.sleep(0.01)

    headers = {"content-type": "text/event-stream"}
    events = (data_event(event(number)) for number in itertools.count())
    server.on("POST", CHAT, Reply(headers=headers, chunks=slowly(itertools.repeat(chunk("a")))))
    server.on("GET", EVENTS, Reply(headers=headers, chunks=slowly(events)))

    def read(stream: Stream[Any], started: threading.Event) -> int:
        count = 0
        for _ in stream:
            count += 1
            started.set()
        return count

    chunks: Stream[Any] = client.chat.create("m", HELLO, stream=True)
    for stream in (chunks, client.jobs.stream_events("ftjob-1")):
        next(stream)
        started = threading.Event()
        with ThreadPoolExecutor() as pool:
            reading = pool.submit(read, stream, started)
            assert started.wait(5)
            stream.close()
            assert reading.result(timeout=5) > 0
    assert len(server.requests) == 2


def test_closing_a_stream_from_another_task_ends_the_reading_loop(server: FakeServer) -> None:
    release = threading.Event()

    def quiet(piece: bytes) -> Iterator[bytes]:
        yield piece
        release.wait(5)

    headers = {"content-type": "text/event-stream"}
    server.on("POST", CHAT, Reply(headers=headers, chunks=quiet(chunk("a"))))
    server.on("GET", EVENTS, Reply(headers=headers, chunks=quiet(data_event(event(1)))))

    async def read(stream: AsyncStream[Any], started: asyncio.Event) -> int:
        count = 0
        async for _ in stream:
            count += 1
            started.set()
        return count

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            chunks: AsyncStream[Any] = await client.chat.create("m", HELLO, stream=True)
            for stream in (chunks, client.jobs.stream_events("ftjob-1")):
                started = asyncio.Event()
                reading = asyncio.create_task(read(stream, started))
                await started.wait()
                await asyncio.sleep(0)
                await stream.close()
                assert await asyncio.wait_for(reading, 5) == 1

    asyncio.run(run())
    release.set()
    assert len(server.requests) == 2


def test_cancelling_the_reading_task_aborts_the_stream_in_the_server(server: FakeServer) -> None:
    aborted = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield chunk("a" * 1000)
        finally:
            aborted.set()

    server.on("POST", CHAT, Reply(headers={"content-type": "text/event-stream"}, chunks=endless()))

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            stream = await client.chat.create("m", HELLO, stream=True)

            async def read() -> None:
                async for _ in stream:
                    await asyncio.sleep(0)

            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(read(), 0.1)
            await stream.close()
            assert await asyncio.to_thread(aborted.wait, 5)

    asyncio.run(run())


def test_the_event_stream_continues_after_a_broken_connection(server: FakeServer, client: Tunewright) -> None:
    one, two, three = (data_event(event(number), f"ftevent-{number}") for number in (1, 2, 3))
    server.on(
        "GET",
        EVENTS,
        sse(one, two[:20], abort=True),
        Reply(abort=True),
        refuse(503),
        sse(b": nothing yet\n\n"),
        sse(one, two, three, DONE),  # the server repeats the last event
    )
    events = client.jobs.stream_events("ftjob-1")
    assert [item.id for item in events] == ["ftevent-1", "ftevent-2", "ftevent-3"]
    first, *others = server.requests
    assert first.query == {"stream": "true"}
    assert "last-event-id" not in first.headers
    assert len(others) == 4
    for request in others:
        assert request.query == {"stream": "true", "after": "ftevent-1"}
        assert request.headers["last-event-id"] == "ftevent-1"


def test_an_event_stream_without_events_is_connected_again(server: FakeServer) -> None:
    release = threading.Event()

    def quiet() -> Iterator[bytes]:
        yield b": open\n\n"
        release.wait(5)

    headers = {"content-type": "text/event-stream"}
    server.on("GET", EVENTS, Reply(headers=headers, chunks=quiet()), sse(data_event(event(1)), DONE))

    async def run() -> list[str]:
        async with AsyncTunewright(server.url, timeout=0.2) as client:
            return [item.id async for item in client.jobs.stream_events("ftjob-1", after="ftevent-0")]

    assert asyncio.run(run()) == ["ftevent-1"]
    release.set()


def test_an_event_stream_gives_up_after_the_reconnect_timeout(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", EVENTS, refuse(404))
    with pytest.raises(tw.NotFoundError):
        list(client.jobs.stream_events("ftjob-1"))
    assert len(server.requests) == 1
    server.stop()
    with pytest.raises(tw.APIConnectionError):
        list(client.jobs.stream_events("ftjob-1", reconnect_timeout=0.1))


def test_a_download_is_written_to_a_file_or_into_a_folder(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    body = bytes(range(256)) * 1000
    tar = Reply(200, body, {"content-type": "application/x-tar"})
    server.on("GET", "/v1/models/ft%3Ab%3As%3A1/download", refuse(503), tar)
    path = client.models.download("ft:b:s:1", tmp_path / "m.tar")
    assert path == tmp_path / "m.tar"
    assert path.read_bytes() == body
    assert client.models.download("ft:b:s:1", tmp_path) == tmp_path / "ft-b-s-1.tar"
    server.on("GET", "/v1/adapters/ft%3Ab%3As%3A1/download", tar)
    assert client.adapters.download("ft:b:s:1", tmp_path / "m.tar").read_bytes() == body
    server.on("GET", "/v1/fine_tuning/jobs/ftjob-1/tensorboard", tar)
    assert client.jobs.tensorboard("ftjob-1", tmp_path / "m.tar").read_bytes() == body

    async def run() -> Path:
        async with AsyncTunewright(server.url) as other:
            return await other.models.download("ft:b:s:1", str(tmp_path / "again.tar"))

    assert asyncio.run(run()).read_bytes() == body
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_download_keeps_the_previous_file(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    def short(_: Request) -> Reply:
        return Reply(chunks=[b"x" * 1000], abort=True)

    path = tmp_path / "m.tar"
    path.write_bytes(b"older")
    server.on("GET", "/v1/models/m/download", short)
    with pytest.raises(tw.StreamInterruptedError):
        client.models.download("m", path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        client.models.download("m", tmp_path / "no" / "m.tar")
