"""The whole API of a service with a stand-in for vLLM, under generated requests, of which `make soak-fuzz` sends many
more, and those at the limits of each parameter; and some picked by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from schemathesis import Case
from tests.engine.conftest import Service
from tests.without_vllm import BASE, fill, start_without_vllm, wait_engine

import fuzzing

schema = fuzzing.api(limits=False)


pytestmark = fuzzing.TRIED_THREE_TIMES


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir: Path = tmp_path_factory.mktemp("fuzz") / "data"
    fill(data_dir)
    service = start_without_vllm(data_dir, "--base", "missing=/nowhere", "--deployable", "absent=/nowhere")
    try:
        wait_engine(service, BASE)
        yield service
    finally:
        service.stop()


@pytest.fixture(autouse=True)
def _unharmed(service: Service) -> Iterator[None]:
    with fuzzing.unharmed(service.log):
        yield


@pytest.fixture(scope="module")
def url(service: Service) -> str:
    return service.url


@pytest.fixture(scope="module")
def fuzzer(url: str) -> fuzzing.Fuzzer:
    return fuzzing.Fuzzer(url, jobs_on="missing", deployable="absent")


@schema.parametrize()
@fuzzing.examples(6)
def test_every_answer_is_as_documented(case: Case, fuzzer: fuzzing.Fuzzer) -> None:
    fuzzer.send(case)


def test_what_one_answer_names_the_next_one_knows(fuzzer: fuzzing.Fuzzer) -> None:
    fuzzer.wander(15)


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
JOBS, FILES, CHAT = "/v1/fine_tuning/jobs", "/v1/files", "/v1/chat/completions"


def job(**fields: object) -> bytes:
    return json.dumps({"model": "missing", "training_file": "file-rows", **fields}).encode()


def upload(head: bytes, purpose: bytes = b"fine-tune", content: bytes = b"{}\n") -> bytes:
    return (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose + b"\r\n--x\r\n"
        b'Content-Disposition: form-data; name="file"' + head + b"\r\n\r\n" + content + b"\r\n--x--\r\n"
    )


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


PICKED: dict[str, tuple[str, str, dict[str, str], bytes, int, str]] = {
    "NUL in a file's id": ("GET", "/v1/files/%00", {}, b"", 404, "not_found"),
    "NUL in a model's name": ("GET", "/v1/models/a%00b/download", {}, b"", 404, "not_found"),
    "NUL in an adapter's": ("POST", "/v1/adapters/%00/load", {}, b"", 404, "not_found"),
    "NUL in a job's": ("GET", f"{JOBS}/%00/events?stream=true", {}, b"", 404, "not_found"),
    "half a surrogate pair in a path": ("GET", "/v1/models/%ED%A0%80", {}, b"", 404, "model_not_found"),
    "no UTF-8 in a path": ("GET", "/v1/files/%FF", {}, b"", 404, "file_not_found"),
    "a way out of the folder": ("GET", "/v1/files/..%2F..%2Ftunewright.db/content", {}, b"", 404, "unknown_url"),
    "a path that goes on": ("GET", "/v1/files/", {}, b"", 404, "unknown_url"),
    "NUL in a cursor": ("GET", f"{FILES}?after=%00", {}, b"", 400, "invalid_value"),
    "NUL in a purpose": ("GET", f"{FILES}?purpose=%00", {}, b"", 400, "invalid_value"),
    "NUL in metadata's value": ("GET", f"{JOBS}?metadata%5Ba%5D=%00", {}, b"", 400, "invalid_value"),
    "NUL in metadata's key": ("GET", f"{JOBS}?metadata%5B%00%5D=a", {}, b"", 400, "invalid_value"),
    "more metadata than a job has": (
        "GET", f"{JOBS}?" + "&".join(f"metadata[{n}]=1" for n in range(1500)), {}, b"", 400, "invalid_value",
    ),
    "a limit of 30 digits": ("GET", f"{FILES}?limit=" + "9" * 30, {}, b"", 400, "invalid_value"),
    "a limit below one": ("GET", "/v1/adapters?limit=0", {}, b"", 400, "invalid_value"),
    "a negative limit": ("GET", f"{JOBS}?limit=-1", {}, b"", 400, "invalid_value"),
    "a limit that is no number": ("GET", f"{FILES}?limit=1e3", {}, b"", 400, "invalid_value"),
    "an order that is none": ("GET", f"{FILES}?order=up", {}, b"", 400, "invalid_value"),
    "a tail of 30 digits": ("GET", f"{JOBS}/none/logs?tail=" + "9" * 30, {}, b"", 400, "invalid_value"),
    "a key that is too long": ("POST", JOBS, {**JSON, "Idempotency-Key": "k" * 256}, job(), 400, "invalid_value"),
    "half a pair in a job's model": ("POST", JOBS, JSON, job(model="\ud800"), 400, "invalid_value"),
    "half a pair in its file": ("POST", JOBS, JSON, job(training_file="\udfff"), 400, "invalid_value"),
    "half a pair in metadata": ("POST", JOBS, JSON, job(metadata={"a": "\ud800"}), 400, "invalid_value"),
    "half a pair in integrations": ("POST", JOBS, JSON, job(integrations=["\ud800"]), 400, "invalid_value"),
    "half a pair in a module": (
        "POST", JOBS, JSON, job(tuning={"target_modules": ["\ud800"]}), 400, "invalid_value",
    ),
    "half a pair in a name": ("POST", JOBS, JSON, job(**{"\ud800": 1}), 400, "invalid_value"),
    "NUL in a job's model": ("POST", JOBS, JSON, job(model="a\0"), 400, "invalid_value"),
    "NUL in its metadata": ("POST", JOBS, JSON, job(metadata={"a\0": "b"}), 400, "invalid_value"),
    "NUL in its template": ("POST", JOBS, JSON, job(chat_template="{{ messages }}\0"), 400, "invalid_value"),
    "a name of a megabyte": ("POST", JOBS, JSON, job(model="m" * 10**6), 400, "invalid_value"),
    "a seed of 30 digits": ("POST", JOBS, JSON, job(seed=10**30), 400, "invalid_value"),
    "a seed of 5000 digits": ("POST", JOBS, JSON, b'{"seed": ' + b"1" * 5000 + b"}", 400, "invalid_json"),
    "an infinite rate": ("POST", JOBS, JSON, job(tuning={"learning_rate": float("inf")}), 400, "invalid_value"),
    "a rate that is NaN": ("POST", JOBS, JSON, job(tuning={"learning_rate": float("nan")}), 400, "invalid_value"),
    "nested beyond Python": ("POST", JOBS, JSON, deep(10**5), 400, "invalid_json"),
    "nested, but read": ("POST", JOBS, JSON, b'{"integrations": ' + deep(700) + b"}", 400, "missing_parameter"),
    "not UTF-8": ("POST", JOBS, JSON, b'{"model": "\xff"}', 400, "invalid_json"),
    "not JSON": ("POST", JOBS, JSON, b"{", 400, "invalid_json"),
    "no body": ("POST", JOBS, JSON, b"", 400, "invalid_json"),
    "plain text": ("POST", JOBS, {"Content-Type": "text/plain"}, job(), 400, "invalid_json"),
    "no type": ("POST", JOBS, {}, job(), 400, "invalid_json"),
    "a form without a boundary": ("POST", FILES, {"Content-Type": "multipart/form-data"}, b"x", 400, "bad_request"),
    "a form that is none": ("POST", FILES, FORM, b"hello", 400, "bad_request"),
    "JSON where a form is due": ("POST", FILES, JSON, b"{}", 400, "missing_parameter"),
    "a field in the file's place": ("POST", FILES, FORM, upload(b""), 400, "invalid_value"),
    "NUL for a purpose": ("POST", FILES, FORM, upload(b'; filename="a"', b"\0"), 400, "invalid_value"),
    "a megabyte for a purpose": ("POST", FILES, FORM, upload(b'; filename="a"', b"x" * 10**6), 400, "invalid_value"),
    "a name of 70 kB": ("POST", FILES, FORM, upload(b'; filename="' + b"x" * 70_000 + b'"'), 400, "bad_request"),
    "half a pair for a generation's model": ("POST", CHAT, JSON, b'{"model": "\\ud800"}', 400, "invalid_json"),
    "NUL for a generation's model": ("POST", CHAT, JSON, b'{"model": "\\u0000"}', 400, "invalid_value"),
    "a generation nested beyond Python": (
        "POST", CHAT, JSON, b'{"model": "tiny", "messages": ' + deep(10**5) + b"}", 400, "invalid_json",
    ),
    "NUL in a deployment's": ("DELETE", "/v1/deployments/%00", {}, b"", 404, "not_found"),
    "a drain that takes for ever": (
        "DELETE", "/v1/deployments/none?timeout=inf", {}, b"", 400, "invalid_value",
    ),
    "an engine of free arguments": (
        "POST", "/v1/deployments", JSON, b'{"model": "absent", "engine": {"args": ["--trust-remote-code"]}}', 400,
        "unknown_parameter",
    ),
    "a share that is NaN": (
        "POST", "/v1/deployments", JSON, b'{"model": "absent", "engine": {"gpu_memory_utilization": NaN}}', 400,
        "invalid_value",
    ),
    "OPTIONS": ("OPTIONS", FILES, {}, b"", 405, "method_not_allowed"),
    "TRACE": ("TRACE", JOBS, {}, b"", 405, "method_not_allowed"),
    "PUT": ("PUT", "/v1/models/tiny", JSON, b"{}", 405, "method_not_allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKED)
def test_a_request_that_no_client_sends(url: str, name: str) -> None:
    method, target, headers, body, status, code = PICKED[name]
    answer, content = request(url, method, target, headers, body)
    error = json.loads(content)["error"]
    assert (answer.status, error["code"]) == (status, code), error
    assert len(content) < 1000, "what was sent is not sent back whole"


@pytest.mark.parametrize(
    ("target", "methods"),
    [
        (FILES, "GET, POST"),
        ("/v1/files/x", "DELETE, GET"),
        (f"{JOBS}/x", "GET"),
        (f"{JOBS}/x/cancel", "POST"),
        (CHAT, "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(url: str, target: str, methods: str) -> None:
    for method in ("OPTIONS", "PATCH", "HEAD"):
        answer, _ = request(url, method, target)
        assert (answer.status, answer.getheader("allow")) == (405, methods)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"a\0b\x1b[31m.jsonl", "ab[31m.jsonl"),
        (b'a\\"b; x=y.jsonl', 'a"b; x=y.jsonl'),
        ("träin \u202egpj.jsonl".encode(), "träin gpj.jsonl"),
        (b"\xff\xfe", "ÿþ"),
        (b"/", "upload.jsonl"),
        (b"\x01", "upload.jsonl"),
        (b"..", "upload.jsonl"),
        (b"a%0d%0aSet-Cookie: x=y", "a%0d%0aSet-Cookie: x=y"),
        (b"x" * 300, "x" * 255),
    ],
)
def test_no_filename_gets_into_a_header(url: str, given: bytes, kept: str) -> None:
    _, content = request(url, "POST", FILES, FORM, upload(b'; filename="' + given + b'"'))
    file = json.loads(content)
    assert file["filename"] == kept
    answer, content = request(url, "GET", f"{FILES}/{file['id']}/content")
    assert (answer.status, content) == (200, b"{}\n")
    (disposition,) = [value for name, value in answer.getheaders() if name == "content-disposition"]
    assert disposition.startswith("attachment; filename")
    assert disposition.isprintable()
    assert answer.getheader("set-cookie") is None


def request(
    url: str, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[HTTPResponse, bytes]:
    """Sends the target as it is written: other clients would normalize it first."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=fuzzing.TIMEOUT)
    try:
        connection.putrequest(method, target)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()
