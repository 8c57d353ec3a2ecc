"""The OpenAPI document: FastAPI's own, and what it cannot know of the generation routes, which are vLLM's."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import ByteSize

from tunewright import __version__

_DESCRIPTION = """Fine-tune language models and serve the results. OpenAI's fine-tuning, files, models, chat and
completions API, and Tunewright's own beside it. Errors always look like `ErrorResponse`."""

_CHAT = {
    "model": "ft:tunewright-tiny:pirate:Zk3mP0aY",
    "messages": [{"role": "user", "content": "What color is the sky?"}],
    "temperature": 0,
}
_GENERATION: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": (
        "Chat",
        "OpenAI's chat completions, streamed or not: logprobs, structured output (`response_format`), tools where "
        "the base has a parser, usage, and vLLM's own sampling parameters.",
        _CHAT,
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": _CHAT["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Arr! The sky be blue, matey!"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 14, "completion_tokens": 11, "total_tokens": 25},
        },
    ),
    "/v1/completions": (
        "Complete a text",
        "OpenAI's completions, streamed or not.",
        {"model": "tunewright-tiny", "prompt": "Once upon a time", "max_tokens": 16},
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": "tunewright-tiny",
            "choices": [{"index": 0, "text": ", there was a fox.", "finish_reason": "length"}],
        },
    ),
    "/v1/responses": (
        "Create a response",
        "OpenAI's responses, as far as vLLM offers them.",
        {"model": "tunewright-tiny", "input": "What color is the sky?"},
        {
            "id": "resp_1",
            "object": "response",
            "model": "tunewright-tiny",
            "status": "completed",
            "output": [],
        },
    ),
    "/v1/embeddings": (
        "Embed texts",
        "For bases that embed; others answer with an error.",
        {"model": "an-embedding-base", "input": "The sky is blue."},
        {"object": "list", "model": "an-embedding-base", "data": [{"index": 0, "embedding": [0.1, -0.2]}]},
    ),
    "/v1/tokenize": (
        "Tokenize a prompt or messages",
        "Token ids as the model would meet them.",
        {"model": "tunewright-tiny", "prompt": "The sky"},
        {"count": 2, "max_model_len": 1024, "tokens": [312, 1021]},
    ),
    "/v1/detokenize": (
        "Turn token ids into text",
        "The reverse of tokenize.",
        {"model": "tunewright-tiny", "tokens": [312, 1021]},
        {"prompt": "The sky"},
    ),
}


def describe(app: FastAPI) -> None:
    """Give every operation its summary, bodies, errors and examples, and make the document 3.1."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path in _GENERATION:
            summary, description, request, answer = _GENERATION[route.path]
            route.summary, route.description, route.tags = summary, description, ["Generation"]
            route.operation_id = "create_" + route.path.removeprefix("/v1/").replace("/", "_")
            route.openapi_extra = _operation(request, answer)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    required = ["model", *[key for key in ("messages", "prompt", "input", "tokens") if key in request][:1]]
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}}
    ok: dict[str, Any] = {
        "description": "vLLM's answer.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": answer}},
    }
    if "temperature" in request or "max_tokens" in request:
        ok["content"]["text/event-stream"] = {
            "schema": {"type": "string"},
            "example": "data: {...}\n\ndata: [DONE]\n\n",
        }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": required,
                        "properties": {"model": {"type": "string"}},
                        "additionalProperties": True,
                    },
                    "example": request,
                }
            },
        },
        "responses": {
            "200": ok,
            "400": {"description": "The request is wrong, or the adapter is not loaded.", **error},
            "401": {"description": "The API key is missing or wrong.", **error},
            "404": {"description": "There is no such model.", **error},
            "408": {"description": "The body stopped coming.", **error},
            "413": {"description": "The body is too large.", **error},
            "429": {"description": "Too many requests are in flight; see Retry-After.", **error},
            "503": {"description": "The engine is not ready; see Retry-After.", **error},
            "504": {"description": "It took too long; not to be tried again.", **error},
        },
    }


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Tunewright",
        version=__version__,
        openapi_version="3.1.0",
        summary="Fine-tune language models and serve the results.",
        description=_DESCRIPTION,
        routes=app.routes,
    )
    document["components"].setdefault("securitySchemes", {})["bearer"] = {"type": "http", "scheme": "bearer"}
    document["security"] = [{}, {"bearer": []}]
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # ours are ErrorResponse, with status 400
        schemas.pop(unused, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, response in operation["responses"].items():
                if status >= "400":  # FastAPI takes errors to be of the route's own media type
                    response["content"] = {"application/json": next(iter(response["content"].values()))}
    return document


def document_text() -> str:
    """The document as it is committed."""
    from tunewright.api.http.app import build  # which imports this module
    from tunewright.config import ServerOptions, Settings, StorageOptions
    from tunewright.store.store import Store

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.model_construct(
            server=ServerOptions(max_upload=ByteSize(0)), storage=StorageOptions(data_dir=Path(folder))
        )
        store = Store.open("sqlite://")
        server, _ = build(settings, store)
        store.close()
    return json.dumps(server.app.openapi(), indent=2, sort_keys=True) + "\n"


def main() -> int:
    """`python -m tunewright.api.http.openapi PATH` writes the document."""
    if len(sys.argv) != 2:
        print("usage: python -m tunewright.api.http.openapi PATH", file=sys.stderr)
        return 2
    Path(sys.argv[1]).write_text(document_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
