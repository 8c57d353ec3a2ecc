"""Evaluations by the whole service with a stand-in for vLLM: through its gateway, killed, and while an alias flips."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE, fill, start_without_vllm

from issuers import AUDIENCE, Issuer
from kills import tree
from tunewright.engine.command import inner_socket
from tunewright.registry.workspace import Workspace
from tunewright_client import (
    ConflictError,
    Evaluation,
    JobFailedError,
    PermissionDeniedError,
    Tunewright,
    TunewrightError,
)

FIRST, SECOND = f"ft:{BASE}:s:1", f"ft:{BASE}:s:2"
KEY = "a-key-that-no-process-of-a-job-has"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module")
def service(issuer: Issuer) -> Iterator[Service]:
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # of a short name, as operators' may be: sockets may lie in it
        yield from started(Path(folder) / "data", issuer)


def started(folder: Path, issuer: Issuer) -> Iterator[Service]:
    fill(folder)
    environment = {
        "TUNEWRIGHT_API_KEY": KEY, "STAND_IN_SECONDS": "0.2", "TUNEWRIGHT_OIDC_ISSUER": issuer.url,
        "TUNEWRIGHT_OIDC_AUDIENCE": AUDIENCE, "TUNEWRIGHT_OIDC_GRANT": "team=default:read+infer",
    }  # fmt: skip
    running = start_without_vllm(folder, environment=environment)
    try:
        wait_until(lambda: _is_ready(running), 120, "the engine")
        yield running
    finally:
        running.stop()


def _is_ready(running: Service) -> bool:
    with running.client(api_key=KEY) as client:
        try:
            return client.models.retrieve(BASE).state == "ready"
        except TunewrightError:
            return False  # it starts


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(api_key=KEY, timeout=120) as opened:
        yield opened


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """The base is right in every second row, and an adapter never."""
    path = tmp_path / "rows.jsonl"
    found = [{"prompt": f"{n}", "completion": "Arr!" if n % 2 else "no"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def figures(done: Evaluation) -> dict[str, float | None]:
    assert done.report is not None
    return {one.model: one.figures[0].value for one in done.report.models}


def test_an_evaluation_from_data_to_its_file(client: Tunewright, rows: Path) -> None:
    client.aliases.set("stable", FIRST)
    made = client.evaluations.create(BASE, rows, against=["stable"], metrics="exact_match")
    client.aliases.set("stable", SECOND)  # the evaluation goes on with what it was
    done = made.wait(timeout=120)
    assert figures(done) == {BASE: 0.5, FIRST: 0.0}
    assert done.report is not None
    [compared] = done.report.comparisons
    assert (compared.conclusion, compared.better_rows, compared.worse_rows) == ("better", 20, 0)
    assert compared.p_value == pytest.approx(2 / 2**20)
    file = client.files.retrieve(done.results_file or "")
    assert (file.purpose, file.filename) == ("evaluation-results", f"{done.id}.jsonl")
    lines = [json.loads(line) for line in client.files.content(file.id).splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 41))
    assert {line["answers"][0]["answer"] for line in lines} == {"Arr!"}
    assert all(line["answers"][1]["answer"].startswith("Arr! ") for line in lines)


def test_killed_it_goes_on(service: Service, client: Tunewright, rows: Path) -> None:
    made = client.evaluations.create(BASE, rows, against=[FIRST], metrics=["exact_match"], seed=1)
    answers = service.data_dir / "jobs" / made.id / "work" / "answers.jsonl"
    wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") > 3, 60, "answers")
    title = f"tunewright: evaluation {made.id}"
    (pid,) = (pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title))
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert KEY.encode() not in environment
    os.kill(pid, signal.SIGKILL)
    done = made.wait(timeout=120)
    assert figures(done) == {BASE: 0.5, FIRST: 0.0}
    told = [event.message for event in done.events(limit=100)]
    assert any("answers are there already" in text for text in told)


def test_a_paused_one_frees_its_device(client: Tunewright, rows: Path) -> None:
    made = client.evaluations.create(BASE, rows, metrics=["exact_match"], seed=2)
    wait_until(lambda: made.refresh().status == "running", 60, "its start")
    made.pause()
    wait_until(lambda: made.refresh().status == "paused", 60, "its pause")
    made.resume()
    assert figures(made.wait(timeout=120)) == {BASE: 0.5}


def test_one_that_cannot_be_measured_fails_with_the_reason(client: Tunewright, rows: Path) -> None:
    with pytest.raises(JobFailedError, match="40 rows have others"):
        client.evaluations.create(BASE, rows, metrics=["field_accuracy"]).wait(timeout=60)


def test_latency_of_models_side_by_side(client: Tunewright) -> None:
    load = {"at_once": [1, 3], "prompt_tokens": 16, "answer_tokens": 5, "requests": 6}

    done = client.evaluations.create(BASE, against=[FIRST], metrics="latency", load=load).wait(timeout=120)

    assert (done.metrics, done.data, done.report is not None) == (["latency"], None, True)
    assert done.report is not None
    loads = done.report.loads or []
    assert [(one.model, one.at_once) for one in loads] == [(BASE, 1), (FIRST, 1), (BASE, 3), (FIRST, 3)]
    for one in loads:
        assert (one.requests, one.failed, one.tokens) == (6, 0, 30)
        assert one.first_token is not None
        assert one.whole is not None
        assert 200 <= one.first_token.p50 <= one.whole.p50, "the stand-in takes 0.2 s to begin"
        assert one.price_per_million_tokens is None
    lines = client.files.content(done.results_file or "").splitlines()
    assert len(lines) == 24


def test_an_alias_flips_to_what_has_passed(client: Tunewright, rows: Path) -> None:
    """From data to a gated flip: refused without an evaluation and with a bad one, done with a good one, and forced."""
    others = rows.with_name(
        "gated.jsonl"
    )  # the same rows in other words: other tests evaluate these models on `rows`
    others.write_text("".join(json.dumps(json.loads(line), indent=None, separators=(",", ":")) + "\n"
                              for line in rows.read_text().splitlines()))  # fmt: skip
    file = client.files.upload(others)
    require = {"evaluation": {"data": file.id, "metric": "exact_match"}, "min": 0.3}
    client.aliases.set("gated", FIRST, wait=False)
    gated = client.aliases.set("gated", FIRST, require=require, wait=False)
    assert gated.require is not None
    with pytest.raises(
        ConflictError, match="it was not evaluated so: tunewright evals create --model tiny --file"
    ):
        client.aliases.set("gated", BASE)
    limit = {"metric": "exact_match", "min": 0.3}
    done = client.evaluations.create(
        BASE, file.id, against=SECOND, metrics="exact_match", require=limit
    ).wait(timeout=120)
    assert done.report is not None
    assert done.report.judgement is not None
    assert done.report.judgement.verdict == "pass", done.report.judgement.reasons
    assert client.aliases.set("gated", BASE, user="ann").targets[0].model == BASE
    judged = client.evaluations.create(
        SECOND, file.id, against=BASE, metrics="exact_match", judge=BASE, seed=3
    ).wait(timeout=120)
    assert judged.report is not None
    assert judged.report.judged is not None
    assert judged.report.judged[0].unjudged == 40, "the stand-in says Arr! and no verdict"
    with pytest.raises(ConflictError, match=r"fail: exact_match is 0 \(0 to 0\.08"):
        client.aliases.set("gated", SECOND)
    assert client.aliases.set("gated", SECOND, force=True, user="bob").version == gated.version + 2
    newest, before, *_ = client.aliases.history("gated", limit=2)
    assert newest.gate is not None
    assert before.gate is not None
    assert (newest.who, newest.gate.forced, newest.gate.targets[0].evaluation) == ("bob", True, judged.id)
    assert (before.who, before.gate.forced, before.gate.targets[0].evaluation) == ("ann", False, done.id)
    rolled = client.aliases.rollback("gated", wait=False)
    assert (rolled.targets[0].model, rolled.require) == (BASE, gated.require)
    page = client.models.report("gated")
    for told in ("exact_match", "gated, version", "pass", file.filename):
        assert told in page
    assert client.models.card(BASE).startswith("---\n")
    pairs = [json.loads(line) for line in client.evaluations.pairs(judged.id).splitlines()]
    rated = client.evaluations.rate(judged.id, "ann", {pair["id"]: "tie" for pair in pairs})
    assert (rated.models[0].ties, rated.models[0].win_rate) == (40, 0.5)


def test_the_inner_gateway_is_private_and_knows_no_aliases(service: Service, client: Tunewright) -> None:
    socket = inner_socket(Workspace(service.data_dir).path)
    assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    client.aliases.set("flips", BASE)

    async def ask(to: str = "ask", **fields: Any) -> tuple[int, Any]:
        asked = {
            "model": BASE,
            "content": "",
            "path": "/v1/completions",
            "body": {"model": BASE, "prompt": "a"},
        }
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
            session.post(f"http://gateway/{to}", json={**asked, **fields}) as response,
        ):
            return response.status, (await response.json())["error"]["code"]

    content = client.evaluations.list().data[0].models[0].content
    assert asyncio.run(ask()) == (400, "model_changed")
    assert asyncio.run(ask("stream")) == (400, "model_changed")
    assert asyncio.run(ask(model="flips")) == (404, "model_not_found")
    assert asyncio.run(ask("stream", model="flips")) == (404, "model_not_found")
    assert asyncio.run(ask(content=content, path="/v1/load_lora_adapter")) == (400, "invalid_value")
    assert asyncio.run(ask("stream", content=content, path="/v1/load_lora_adapter")) == (400, "invalid_value")


def test_whom_a_token_is_for_generates_and_is_told_in_the_usage(
    service: Service, client: Tunewright, issuer: Issuer
) -> None:
    """All processes of a service that takes tokens run, as the tests above show."""
    token = issuer.token("team")
    with service.client(api_key=lambda: token) as member:
        assert member.completions.create(BASE, "hi").choices
        with pytest.raises(PermissionDeniedError):
            member.files.upload(b"{}", filename="a.jsonl")

    def used() -> list[str | None]:
        buckets = client.usage.completions(group_by=["api_key_id"])
        return [one.api_key_id for bucket in buckets for one in bucket.results]

    wait_until(lambda: any((key or "").startswith("oidc-") for key in used()), 60, "what the token has used")
    (refused,) = client.audit_logs.list(event_types=["request.refused"])
    assert refused.actor is not None
    assert refused.actor.session is not None
    assert refused.actor.session.user.email == "alice@corp.example"
    assert token.split(".")[1] not in service.log.read_text()
