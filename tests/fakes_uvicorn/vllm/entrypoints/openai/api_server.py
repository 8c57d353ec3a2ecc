"""A stand-in for vLLM's server, for tests of connections: uvicorn on a unix socket, with vLLM's keep-alive timeout.

That is VLLM_HTTP_TIMEOUT_KEEP_ALIVE, and 5 s without it, as in vLLM; FAKE_VLLM_KEEP_ALIVE overrules both, like an
engine that ignores the variable. A completion takes `max_tokens` milliseconds. There are no adapters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from typing import Any

import uvicorn


class Server:
    """An ASGI application."""

    def __init__(self, base: str) -> None:
        self._base = base

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        answer: Any = {}
        if path == "/v1/models":
            answer = {"data": [{"id": self._base, "max_model_len": 1024}]}
        elif path == "/collective_rpc":
            answer = {"results": ["set()"]}
        elif path != "/health":
            body = json.loads(content)
            await asyncio.sleep(body.get("max_tokens", 16) / 1000)
            answer = {"id": "1", "model": self._base, "choices": [{"index": 0, "text": "Arr!"}]}
            if body.get("stream"):
                await self._stream(answer, send)
                return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _compact(answer)})

    async def _stream(self, answer: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in (_compact(answer), b"[DONE]"):
            await send(
                {
                    "type": "http.response.body",
                    "body": b"data: " + event + b"\n\n",
                    "more_body": event != b"[DONE]",
                }
            )


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--uds", required=True)
    options, _ = parser.parse_known_args()
    asked = os.environ.get("FAKE_VLLM_KEEP_ALIVE") or os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5")
    uvicorn.run(
        Server(options.served_model_name), uds=options.uds, log_level="warning", timeout_keep_alive=int(asked)
    )


if __name__ == "__main__":
    main()
