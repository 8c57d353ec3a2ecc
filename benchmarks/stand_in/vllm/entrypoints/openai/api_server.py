"""A stand-in for vLLM's server that costs little, so that a benchmark measures what is in front of it.

Like vLLM it answers in steps: each `STAND_IN_STEP` seconds, every running stream gets one event of the size of vLLM's,
`max_tokens` of them in all, and one of the usage where it is asked for. At most `--max-num-seqs` run at once, the
others wait in order. A connection that closes ends its request. `GET /running` says how many requests there are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import httptools
import uvloop

_STEP = float(os.environ.get("STAND_IN_STEP", "0.006"))
_HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: %s\r\n"
_EVENTS = b"text/event-stream; charset=utf-8"
_CHUNK = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764460800,'
    '"model":"%s","choices":[{"index":0,"text":" once","logprobs":null,"finish_reason":null,"stop_reason":null,'
    '"prompt_token_ids":null,"token_ids":null}],"usage":null}\n\n'
)
_USAGE = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764460800,'
    '"model":"%s","choices":[],"usage":{"prompt_tokens":8,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_END = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine:
    """The requests of all connections."""

    def __init__(self, base: str, places: int) -> None:
        self.base = base
        self.adapters: dict[str, int] = {}
        self._places = places
        self._waiting: dict[Connection, None] = {}
        self._running: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, connection: Connection) -> None:
        self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self._running.pop(connection, None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            at = max(at + _STEP, loop.time())
            await asyncio.sleep(at - loop.time())
            while self._waiting and len(self._running) < self._places:
                connection = next(iter(self._waiting))
                del self._waiting[connection]
                self._running[connection] = None
            for connection in list(self._running):
                if connection.step():
                    del self._running[connection]


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._left = self._tokens = 0
        self._event = self._last = b""
        self._streams = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._engine.remove(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._url.decode()
        body = json.loads(self._body) if self._body else {}
        engine = self._engine
        answers: dict[str, Callable[[], Any]] = {
            "/health": lambda: {},
            "/running": lambda: {"running": len(engine)},
            "/v1/models": lambda: {
                "data": [{"id": name, "max_model_len": 1024} for name in (engine.base, *engine.adapters)]
            },
            "/tokenize": lambda: {"count": 1, "tokens": [0]},
            "/collective_rpc": lambda: {"results": [str(set(engine.adapters.values()) or "set()")]},
            "/v1/load_lora_adapter": lambda: engine.adapters.setdefault(
                body["lora_name"], 1 + len(engine.adapters)
            ),
            "/v1/unload_lora_adapter": lambda: engine.adapters.pop(body["lora_name"], None),
        }
        if path in answers:
            self._answer(200, answers[path]())
        elif body.get("model") != engine.base and body.get("model") not in engine.adapters:
            self._answer(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        else:
            self._left = self._tokens = body.get("max_tokens") or 16
            self._streams = body.get("stream") is True
            self._event = _framed((_CHUNK % body["model"]).encode())
            self._last = _END
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = _USAGE % (body["model"], 8 + self._tokens, self._tokens)
                self._last = _framed(usage.encode()) + _END
            engine.add(self)

    def step(self) -> bool:
        """Generate one token. Returns whether it was the last one."""
        self._left -= 1
        if self._streams:
            head = b""
            if self._left == self._tokens - 1:
                head = _HEAD % (200, _EVENTS) + b"transfer-encoding: chunked\r\n\r\n"
            self._transport.write(head + self._event + (b"" if self._left else self._last))
        elif not self._left:
            self._answer(200, {"id": "1", "choices": [{"index": 0, "text": " once" * self._tokens}]})
        return not self._left

    def _answer(self, status: int, value: Any) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        head = _HEAD % (status, b"application/json") + b"content-length: %d\r\n\r\n" % len(text)
        self._transport.write(head + text)


async def _serve(options: argparse.Namespace) -> None:
    engine = Engine(options.served_model_name, options.max_num_seqs)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Connection(engine), options.uds, backlog=8192)
    async with server:
        await engine.run()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    options, _ = parser.parse_known_args()
    uvloop.run(_serve(options))


if __name__ == "__main__":
    main()
