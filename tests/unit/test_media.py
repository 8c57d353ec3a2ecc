"""Media that requests name by URL: refused, unless the operator allows the host, by the gateway and by the engines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import gateway_for
from tunewright.api.gateway.media import check_media
from tunewright.api.http.app import build
from tunewright.config import Settings
from tunewright.errors import UnsupportedFeature
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

URL = "https://evil.example/x.png"
DATA = "data:image/png;base64,iVBORw0KGgo="


def chat(*parts: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": list(parts)}],
    }


def refused(body: dict[str, Any], *domains: str) -> UnsupportedFeature | None:
    try:
        check_media(body, domains)
    except UnsupportedFeature as error:
        return error
    return None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat({"type": "image_url", "image_url": {"url": URL}}), "messages[1].content[0].image_url"),
        (chat({"type": "text", "text": "x"}, {"image_url": URL}), "messages[1].content[1].image_url"),
        (chat({"type": "audio_url", "audio_url": {"url": URL}}), "messages[1].content[0].audio_url"),
        (chat({"type": "video_url", "video_url": {"url": URL}}), "messages[1].content[0].video_url"),
        (chat({"type": "input_image", "image_url": URL}), "messages[1].content[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": URL}]}]},
            "input[0].content[0].file_url",
        ),
        (
            {
                "input": [
                    {"type": "function_call_output", "output": [{"type": "input_image", "image_url": URL}]}
                ]
            },
            "input[0].output[0].image_url",
        ),
        (
            {"input": [{"type": "computer_call_output", "output": {"image_url": URL}}]},
            "input[0].output.image_url",
        ),
    ],
)
def test_a_url_is_refused_with_its_place(body: dict[str, Any], param: str) -> None:
    error = refused(body)
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "media_url_not_allowed", param)
    assert "--media-domain" in error.message
    assert "evil.example" in error.message
    assert refused(body, "evil.example") is None


@pytest.mark.parametrize(
    "url",
    [
        "http://allowed.example.evil.example/x", "http://x.allowed.example/", "http://allowed.example@evil.example/",
        "file:///etc/passwd", "/etc/passwd", "ftp://allowed.example/x", "//allowed.example/x", "http://[::1/x",
        "http://169.254.169.254/latest", "http://127.0.0.1:8000/v1/files", "HTTPS://evil.example/x", " data:x",
    ],
)  # fmt: skip
def test_only_the_very_host_is_allowed(url: str) -> None:
    assert refused(chat({"type": "image_url", "image_url": {"url": url}}), "allowed.example")


@pytest.mark.parametrize(
    "url", [DATA, DATA.upper(), "https://allowed.example/x", "http://ALLOWED.example:81/x"]
)
def test_what_is_in_the_request_or_allowed_is_left_to_the_engine(url: str) -> None:
    assert refused(chat({"type": "image_url", "image_url": {"url": url}}), "allowed.example") is None


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "x", "input": "y"},
        {"messages": [None, 1, "x", [], {"content": None}, {"content": {}}, {"content": "image_url"}]},
        {"input": ["image_url", 3]},
        chat({"type": "image_url"}, {"image_url": None}, {"image_url": {"url": 3}}, {"image_url": []}, 7),
        chat({"type": "text", "text": URL}),
    ],
)
def test_everything_else_is_for_vllm_to_judge(body: dict[str, Any]) -> None:
    assert refused(body) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tokenize", "/v1/embeddings", "/v1/responses"])
def test_every_generation_is_checked_before_an_engine_sees_it(
    store: Store, data: Workspace, path: str
) -> None:
    server, spec = build(Settings(data_dir=data.path, media_domain=["allowed.example"]), store)
    spec.gateway = gateway_for(store)
    api = TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    for host, code in (("evil.example", "media_url_not_allowed"), ("allowed.example", "model_not_found")):
        body = json.dumps(chat({"image_url": {"url": f"https://{host}/x.png"}}))
        for written in (body, body.replace("_", "\\u005f")):
            answer = api.post(path, content=written, headers={"Content-Type": "application/json"})
            assert answer.json()["error"]["code"] == code
