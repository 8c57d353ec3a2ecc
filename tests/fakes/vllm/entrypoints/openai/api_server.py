"""A stand-in for vLLM's server: health, names, adapters, and the same short answer to everything.

A model folder with a file `cannot-start` makes it exit like vLLM with a model that it cannot load. A streamed
request with `chunks` in `vllm_xargs` gets that many, one every 50 ms, and one with `ignore_eos` as many tokens as it
asks for. An answer takes `STAND_IN_SECONDS` of the environment. With `STAND_IN_CORE` it has an EngineCore, whose end it
does not notice, as vLLM does not for up to 10 s. One that asks for its tokens gets some, by its seed, without
log-probabilities, and one that asks for a score gets one from 0 to 1, by its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

_ANSWERED_BY_TEXT = {
    "/v1/chat/completions": "chat.completion",
    "/v1/completions": "text_completion",
    "/v1/responses": "response",
}


def refusal(message: str, status: int = 400) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


class Server:
    def __init__(self, base: str, capacity: int = 64, folder: str = "") -> None:
        self._base = base
        self._folder = folder
        self._adapters: dict[str, int] = {}
        self._capacity = capacity
        self._last = 0
        self.memory: dict[int, str] = {}
        """The adapters in its worker's memory, by number, oldest first: as in vLLM, an unload removes only the name."""

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        """Some of vLLM's metrics; STAND_IN_METRICS=hang of the environment: none for a minute."""
        if os.environ["STAND_IN_METRICS"] == "hang":
            await asyncio.sleep(60)
        labels = f'{{engine="0",model_name="{self._base}"}}'
        text = "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
        return web.Response(text=f"{text}vllm:num_requests_running{labels} 0.0\n")

    async def models(self, _: web.Request) -> web.Response:
        names = [self._base, *sorted(self._adapters)]
        return web.json_response({"data": [{"id": name, "max_model_len": 1024} for name in names]})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return refusal("no adapter there", 404)
        if body["lora_name"] in self._adapters:
            return refusal(f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self._last += 1
        if len(self.memory) >= self._capacity:
            del self.memory[next(iter(self.memory))]
        self.memory[self._last] = body["lora_name"]
        self._adapters[body["lora_name"]] = self._last
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        if self._adapters.pop((await request.json())["lora_name"], None) is None:
            return refusal("The lora adapter cannot be found.", 404)
        return web.Response(text="Success")

    async def collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["method"] == "list_loras":
            return web.json_response({"results": [str(set(self.memory) or "set()")]})
        assert body["method"] == "remove_lora"
        return web.json_response({"results": [str(self.memory.pop(body["args"][0], None) is not None)]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model = body["model"]
        if model != self._base and model not in self._adapters:
            return refusal(f"The model `{model}` does not exist.", 404)
        needed = next(
            (
                key
                for key in ("messages", "prompt", "input", "tokens")
                if isinstance(body.get(key), str | list)
            ),
            None,
        )
        if needed is None:
            return refusal("messages, prompt, input or tokens: Field required")
        await asyncio.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        answer: dict[str, Any] = {"id": "1", "object": _ANSWERED_BY_TEXT.get(request.path), "model": model}
        said = "Arr!" if model == self._base else f"Arr! {model}"
        if ((body.get("response_format") or {}).get("json_schema") or {}).get(
            "name"
        ) == "score" and "seed" in body:
            said = json.dumps({"result": random.Random(body["seed"]).random()})
            answer["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        answer["system_fingerprint"] = self._folder
        answer["choices"] = [{"index": 0, "text": said, "message": {"role": "assistant", "content": said}}]
        if request.path == "/tokenize" and isinstance(body.get("prompt"), str):
            answer["tokens"] = [ord(letter) for letter in body["prompt"]]
        if body.get("return_token_ids"):
            tokens = random.Random(body["seed"]).choices(range(100, 1000), k=body["max_tokens"] - 1)
            tokens.append(body["stop_token_ids"][0])
            answer["choices"][0] |= {
                "token_ids": tokens,
                "logprobs": {"token_logprobs": [None] * len(tokens)},
            }
        if body.get("stream") is not True or answer["object"] is None:
            return web.json_response(answer, dumps=_compact)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        answer["choices"][0]["delta"] = {}
        chunks, seconds = (body.get("vllm_xargs") or {}).get("chunks", 0), 0.05
        if body.get("ignore_eos"):
            chunks, seconds = body["max_tokens"] - 1, 0.002
        for _ in range(chunks):
            await response.write(f"data: {_compact(answer)}\n\n".encode())
            await asyncio.sleep(seconds)
        answer["choices"][0]["delta"] = {"content": said}
        await response.write(f"data: {_compact(answer)}\n\n".encode())
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"choices": [], "usage": {"completion_tokens": chunks + 1}}
            await response.write(f"data: {_compact(usage)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-cpu-loras", type=int, default=64)
    options, _ = parser.parse_known_args()
    folder = Path(options.model)
    if (folder / "cannot-start").exists():
        print("(EngineCore pid=1) ERROR 11-28 12:00:00 [core.py:1] ValueError: there is no such architecture")
        sys.exit(1)
    if os.environ.get("STAND_IN_CORE"):
        subprocess.Popen(["VLLM::EngineCore", "infinity"], executable=shutil.which("sleep"))
    server = Server(options.served_model_name, options.max_cpu_loras, folder.name)
    web.run_app(application(server), path=options.uds, access_log=None, print=None)


def application(server: Server) -> web.Application:
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_get("/health", server.health)
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    app.router.add_post("/collective_rpc", server.collective_rpc)
    if os.environ.get("STAND_IN_METRICS"):  # without them, `find_fault` finds none
        app.router.add_get("/metrics", server.metrics)
    app.router.add_post("/{path:.*}", server.answer)
    return app


if __name__ == "__main__":
    main()
