"""What a service without a key answers: its own machine's programs, and no page of another site."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from fake_engine import gateway_for
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.http.local import LocalRequests, wrong_type
from tunewright.config import Settings
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

BASE = "tunewright-tiny"
KEY = "the-key-of-16-characters"
CHAT = json.dumps({"model": BASE, "messages": [{"role": "user", "content": "Hi"}]})
JSON = {"content-type": "application/json"}
LOOPBACK = [
    "127.0.0.1", "127.0.0.1:8000", "127.1.2.3:80", "127.1", "localhost", "LocalHost:8000", "localhost.",
    "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
]  # fmt: skip
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
    "foo.localhost", "10.0.0.1", "0.0.0.0:8000", "[::]", "[::2]:8000", "::1", "[::1", "128.1", "1270", "",
    "localhost:", "localhost:x", "localhost:8000:9", "localhost, evil.example", "user@localhost", "localhost/x",
    "127.0.0.1 evil.example", "localhost\tx", "ⓛocalhost", "127.0.0.256",
]  # fmt: skip


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("utf-8")) for name, value in pairs])


def code(*pairs: tuple[str, str], allowed: tuple[str, ...] = ()) -> str | None:
    found = LocalRequests(allowed).refusal(headers(*pairs))
    return found.code if found is not None else None


# the names that requests are sent to


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_names_are_answered(host: str) -> None:
    assert code(("host", host)) is None


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host: str) -> None:
    """A page of evil.example whose name resolves to 127.0.0.1 sends this Host."""
    assert code(("host", host)) == "host_not_allowed"


def test_a_request_without_a_name_or_with_two_is_refused() -> None:
    assert code() == "host_not_allowed"
    assert code(("host", "localhost"), ("host", "evil.example")) == "host_not_allowed"
    assert code(("x-forwarded-host", "localhost")) == "host_not_allowed"


def test_the_operator_may_allow_more_names() -> None:
    allowed = ("Tunes.example", "10.0.0.1", "[fe80::1]")
    for host in (
        "tunes.example",
        "TUNES.example:8000",
        "tunes.example.",
        "10.0.0.1:8000",
        "[fe80::1]:80",
        "localhost",
    ):
        assert code(("host", host), allowed=allowed) is None, host
    for host in ("x.tunes.example", "tunes.example.evil.example", "10.0.0.2"):
        assert code(("host", host), allowed=allowed) == "host_not_allowed", host


# the pages that requests come from


@pytest.mark.parametrize("host", LOOPBACK)
def test_pages_of_this_machine_are_answered(host: str) -> None:
    for scheme in ("http", "https"):
        assert code(("host", "localhost"), ("origin", f"{scheme}://{host}")) is None


@pytest.mark.parametrize(
    "origin",
    [
        *(f"http://{host}" for host in FOREIGN),
        "null",
        "",
        "file://",
        "localhost",
        "ftp://localhost",
        "http://[::1",
    ],
)
def test_other_sites_pages_are_refused(origin: str) -> None:
    assert code(("host", "localhost"), ("origin", origin)) == "origin_not_allowed"


def test_a_page_of_an_allowed_name_is_answered() -> None:
    pairs = (("host", "localhost"), ("origin", "https://tunes.example"), ("sec-fetch-site", "cross-site"))
    assert code(*pairs) == "origin_not_allowed"
    assert code(*pairs, allowed=("tunes.example",)) is None


@pytest.mark.parametrize(
    ("site", "refused"), [("cross-site", True), ("same-site", False), ("same-origin", False), ("none", False)]
)
def test_what_another_site_embeds_or_links_is_refused(site: str, refused: bool) -> None:
    """Such requests have no Origin: images, scripts, frames, links."""
    assert (code(("host", "localhost"), ("sec-fetch-site", site)) == "origin_not_allowed") is refused


# bodies


@pytest.mark.parametrize(
    ("kind", "json", "form"),
    [
        ("application/json", True, True),
        ("Application/JSON; charset=utf-8", True, True),
        ("application/merge-patch+json", True, True),
        ("multipart/form-data; boundary=x", False, True),
        ("text/plain", False, False),
        ("text/plain; application/json", False, False),
        ("application/x-www-form-urlencoded", False, False),
        ("application/jsonp", False, False),
        ("text/json", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
def test_a_body_must_have_the_type_that_its_route_reads(kind: str | None, json: bool, form: bool) -> None:
    given = [("content-length", "2")] + ([("content-type", kind)] if kind is not None else [])
    assert (wrong_type(headers(*given), takes_form=False) is None) is json
    assert (wrong_type(headers(*given), takes_form=True) is None) is form


def test_two_types_are_none_and_no_body_needs_none() -> None:
    two = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert wrong_type(headers(("content-length", "2"), *two), takes_form=False)
    assert wrong_type(headers(("transfer-encoding", "chunked")), takes_form=False)
    assert wrong_type(headers(("content-length", "0")), takes_form=False) is None
    assert wrong_type(headers(), takes_form=False) is None


# the application


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def make(built: dict[str, Any], store: Store, data: Workspace) -> Any:
    def client(**options: Any) -> TestClient:
        settings = Settings(data_dir=data.path, **options)
        store.engines.declare([BASE])
        if str(options) not in built:
            built[str(options)] = build(settings, store)
        server, spec = built[str(options)]
        spec.gateway = gateway_for(store)
        server.app.state.context = ServiceContext(settings, store, data, spec.control)
        return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    return client


ROUTES = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/files", None),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/fine_tuning/jobs", "{}"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel", None),
    ("DELETE", "/v1/models/x", None),
    ("PUT", "/v1/aliases/x", "{}"),
    ("GET", "/nowhere", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_every_route_is_closed_to_other_sites(make: Any, method: str, path: str, body: str | None) -> None:
    api = make()
    for foreign, why in (
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"sec-fetch-site": "cross-site"}, "origin_not_allowed"),
    ):
        answer = api.request(method, path, content=body, headers={**JSON, **foreign})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (403, why, "permission_error")
        assert "--allowed-host" in error["message"]
    assert api.request(method, path, content=body, headers=JSON).status_code != 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_page_cannot_post_json_as_a_form(make: Any, store: Store, kind: str) -> None:
    api = make()
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/fine_tuning/jobs", "{}"),
        ("/v1/deployments", "{}"),
    ):
        answer = api.post(path, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json"), path
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json"])
def test_an_unknown_path_is_not_found_whatever_type_its_body_has(make: Any, kind: str | None) -> None:
    given = {"content-type": kind} if kind else {}
    for path, status, code in (("/nowhere", 404, "unknown_url"), ("/v1/models", 405, "method_not_allowed")):
        answer = make().post(path, content=b"{}", headers=given)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_file_of_another_sites_page_is_not_stored(make: Any, data: Workspace) -> None:
    form: dict[str, Any] = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "fine-tune"}}
    refused = make().post("/v1/files", **form, headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert list(data.files.iterdir()) == []
    assert make().post("/v1/files", **form).status_code == 200


def test_probes_are_answered_under_any_name_without_reasons(make: Any, store: Store) -> None:
    api = make()
    store.engines.set_state(BASE, store.engines.get(BASE).state, reason="/secret/path is gone")  # type: ignore[union-attr]
    foreign = {"host": "10.1.2.3:8000"}
    assert api.get("/health", headers=foreign).status_code == 200
    assert api.get("/openapi.json", headers=foreign).status_code == 200
    assert "secret" in api.get("/ready").text
    assert "secret" not in api.get("/ready", headers=foreign).text


def test_a_refusal_quotes_little_of_what_was_sent(make: Any) -> None:
    answer = make().get("/v1/models", headers={"host": "e" * 5000})
    assert answer.status_code == 403
    assert len(answer.text) < 600


def test_with_a_key_names_and_pages_do_not_matter(make: Any) -> None:
    api = make(api_key=KEY)
    foreign = {"host": "evil.example", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert api.get("/v1/models", headers=foreign).status_code == 401
    assert api.get("/v1/models", headers={**foreign, "authorization": f"Bearer {KEY}"}).status_code == 200


def test_an_allowed_host_is_answered(make: Any) -> None:
    api = make(allowed_host="tunes.example")
    assert api.get("/v1/models", headers={"host": "tunes.example"}).status_code == 200
    assert api.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
