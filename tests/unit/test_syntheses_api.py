"""Syntheses over HTTP and in the scheduler: what is refused before anything runs, what is shown, what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rows import FILE, PRODUCT
from tests.conftest import Publish
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.products import Product
from tunewright.kinds import SYNTHESIS
from tunewright.kinds.kind import WITHOUT_BASE, JobRefused, Service
from tunewright.kinds.synthesis.kind import reading_of
from tunewright.kinds.synthesis.models import SynthesisPlan
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import FileReport
from tunewright.store.records import EngineInfo, Job
from tunewright.store.states import EngineState, FileStatus, ModelState
from tunewright.store.store import Store
from tunewright.synthesizer.folder import MadeRows, Synthesized, dropped_file, made_file
from tunewright.synthesizer.report import SynthesisReport

pytestmark = pytest.mark.each_database

SYNTHESES = "/v1/syntheses"
FT = "ft:tiny:a:1"
ANSWERS = {"type": "answers"}
GRADER = {
    "type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}",
    "reference": "{{ item.expected }}",
}  # fmt: skip
MODEL_GRADER = {
    "type": "score_model", "name": "j", "model": "tiny", "input": [{"role": "user", "content": "?"}], "range": [0, 1],
}  # fmt: skip


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def service(store: Store, data: Workspace) -> Service:
    settings = Settings(data_dir=data.path, base=[f"tiny={embedded_base_path()}"])
    return Service(settings, store, data, False)


@pytest.fixture
def api(built: dict[str, Any], service: Service, store: Store, publish_model: Publish) -> TestClient:
    if not built:
        built["server"], _ = build(service.settings, store)
    built["server"].app.state.context = ServiceContext(service.settings, store, service.workspace, _control)
    info = EngineInfo(
        device="cpu", internal_name="tiny", fingerprint="f" * 64, max_model_len=300, max_num_seqs=20
    )
    store.engines.declare(["tiny", "new"])
    store.engines.starting("tiny", "/tmp/s", info)
    store.engines.set_state("tiny", EngineState.READY)
    publish_model({**PRODUCT, "name": FT, "base": "tiny", "sha256": "a" * 64, "state": ModelState.READY})
    store.aliases.put("one", (AliasTarget(FT),), None, None)
    rows = [json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) for n in range(9)]
    service.workspace.file(FILE["id"]).write_text("\n".join(rows))
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def create(api: TestClient, **fields: Any) -> Any:
    return api.post(SYNTHESES, json={"model": "one", "file": FILE["id"], "task": ANSWERS, **fields})


def made(api: TestClient, store: Store, **fields: Any) -> Job:
    answer = create(api, **fields)
    assert answer.status_code == 200, answer.text
    job = store.jobs.get(answer.json()["id"])
    assert job is not None
    return job


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_the_teacher_is_looked_up_once_and_kept(api: TestClient, store: Store) -> None:
    synthesis = create(api, metadata={"team": "a"}, seed=3).json()
    assert synthesis["id"].startswith("synth-")
    assert (synthesis["object"], synthesis["status"]) == ("synthesis", "validating_files")
    assert synthesis["teacher"] == {"name": FT, "asked": "one", "content": "a" * 64}
    assert (synthesis["temperature"], synthesis["seed"], synthesis["max_tokens"]) == (0.7, 3, None)
    assert synthesis["task"]["n"] == 1
    assert synthesis["deduplicate"] == {"similarity": 0.85, "source": None}
    store.aliases.put("one", (AliasTarget("tiny"),), None, None)
    assert api.get(f"{SYNTHESES}/{synthesis['id']}").json() == synthesis
    assert [one["id"] for one in api.get(SYNTHESES).json()["data"]] == [synthesis["id"]]
    assert error(api.delete(f"/v1/files/{FILE['id']}"))["code"] == "file_in_use"
    api.delete("/v1/aliases/one")
    assert error(api.delete(f"/v1/models/{FT}"))["code"] == "model_in_use"
    events = api.get(f"{SYNTHESES}/{synthesis['id']}/events").json()["data"]
    assert (events[0]["object"], events[0]["id"].partition("-")[0]) == ("synthesis.event", "synthevent")
    assert api.post(f"{SYNTHESES}/{synthesis['id']}/cancel").json()["status"] == "cancelled"


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "nobody"}, 404, "model", "No such model"),
        ({"model": "new"}, 503, None, "has not been ready yet"),
        ({"file": "file-none"}, 400, "file", "No such file"),
        ({"task": {"type": "poems"}}, 400, "task", "poems"),
        ({"task": {"type": "rows"}}, 400, "task.count", "count"),
        ({"task": {**ANSWERS, "n": 0}}, 400, "task.n", "1"),
        ({"task": {**ANSWERS, "min_score": 1}}, 400, "task.grader", "`min_score` needs a `grader`"),
        ({"task": {**ANSWERS, "grader": GRADER}}, 400, "task.min_score", "drops nothing by itself"),
        ({"task": {**ANSWERS, "grader": MODEL_GRADER, "keep": "best"}}, 400, "task.grader", "asks a model"),
        ({"deduplicate": {"similarity": 0.1}}, 400, "deduplicate.similarity", "0.5"),
        ({"temperature": 3}, 400, "temperature", "2"),
        ({"stream": True}, 400, "stream", ""),
    ],
)
def test_what_makes_no_sense_is_refused(
    api: TestClient, fields: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    refused = error(create(api, **fields), status)
    assert refused["param"] == param, refused
    assert words in refused["message"], refused
    assert api.get(SYNTHESES).json()["data"] == []


def test_what_is_known_of_the_rows_is_checked_at_once(api: TestClient, store: Store) -> None:
    report = {"container": "jsonl", "format": "text", "kind": "text", "rows": 40_000, "problem": None}
    store.files.finish_check(FILE["id"], FileStatus.PROCESSED, report)
    refused = error(create(api, task={"type": "paraphrases"}))
    assert (refused["code"], "no user's turn" in refused["message"]) == ("invalid_file", True)
    refused = error(create(api, task={**ANSWERS, "n": 2}))
    assert (refused["code"], "80000 times" in refused["message"]) == ("too_many_requests", True)
    other = {**GRADER, "reference": "{{ item.answer }}"}
    refused = error(create(api, task={**ANSWERS, "grader": other, "min_score": 1}))
    assert (refused["code"], refused["param"]) == ("invalid_grader", "task.grader")
    assert create(api, task={**ANSWERS, "n": 2}, rows=10).status_code == 200


def test_the_rest_is_found_when_it_is_validated(api: TestClient, store: Store, service: Service) -> None:
    plan = SYNTHESIS.validate(service, made(api, store), WITHOUT_BASE).resolved
    assert plan == SynthesisPlan(rows_in_file=9, has_template=True, max_tokens=150)
    other = {**GRADER, "reference": "{{ item.answer }}"}
    job = made(api, store, task={**ANSWERS, "grader": other, "min_score": 1})
    with pytest.raises(JobRefused, match=r"refers to item\.answer"):
        SYNTHESIS.validate(service, job, WITHOUT_BASE)
    info = EngineInfo(device="cpu", internal_name="tiny", fingerprint="f", has_chat_template=False)
    store.engines.starting("tiny", "/tmp/s", info)
    with pytest.raises(JobRefused, match="no chat template"):
        SYNTHESIS.validate(service, made(api, store, task={"type": "paraphrases"}), WITHOUT_BASE)
    job = made(api, store)
    plan = SYNTHESIS.validate(service, job, WITHOUT_BASE).resolved
    assert isinstance(plan, SynthesisPlan)
    assert not plan.has_template, "it continues texts"
    source = service.workspace.file(FILE["id"])
    source.write_text('{"instruction": "Add.", "input": "2+2", "output": "4"}\n')
    job = made(api, store)
    plan = SYNTHESIS.validate(service, job, WITHOUT_BASE).resolved
    assert isinstance(plan, SynthesisPlan)
    assert reading_of(job, plan.has_template).alpaca == "template", "its rows are texts"
    source.write_text('{"messages": [{"role": "user", "content": "2+2?"}], "id": 1}\n')
    with pytest.raises(JobRefused, match="the file has messages") as refused:
        SYNTHESIS.validate(service, made(api, store), WITHOUT_BASE)
    assert (refused.value.code, refused.value.param) == ("no_chat_template", "file")
    service.workspace.file(FILE["id"]).write_text('{"question": "2+2?"}\n{"question": "3+3?"}\n')
    assert error(create(api, data={"columns": {"prompt": "question"}}))["code"] == "invalid_file"
    job = made(api, store, data={"columns": {"text": "question"}})
    plan = SYNTHESIS.validate(service, job, WITHOUT_BASE).resolved
    assert isinstance(plan, SynthesisPlan)
    assert plan.rows_in_file == 2, "prompts alone"


def test_both_files_are_listed_once_and_none_of_a_cancelled_one(
    api: TestClient, store: Store, service: Service, tmp_path: Path
) -> None:
    jobs = [made(api, store, seed=seed) for seed in (1, 2)]
    store.jobs.mark_valid(jobs[0].id, {"rows_in_file": 9, "max_tokens": 8}, "File validated")
    assert store.jobs.claim(SYNTHESIS.places, [""], [SYNTHESIS.name]) is not None
    store.jobs.cancel(jobs[1].id)
    for number, job in enumerate(jobs):
        folder = JobFolder(tmp_path / str(number))
        folder.work.mkdir(parents=True)
        made_file(folder).write_text("{}\n")
        dropped_file(folder).write_text("{}\n{}\n")
        check = FileReport(container="jsonl", rows=1).as_json()
        report = SynthesisReport(rows_in_file=9, rows_drawn=9, requests=3, rows_made=1)
        folder.write_result(
            Synthesized(
                status="succeeded", made=MadeRows(bytes=3, sha256="1" * 64, check=check),
                dropped=Product(bytes=6, sha256="2" * 64), report=report.model_dump(mode="json"),
            )
        )  # fmt: skip
        for _ in range(2):  # repeated after a crash
            SYNTHESIS.publish(service, job, WITHOUT_BASE, folder)
    shown = [api.get(f"{SYNTHESES}/{job.id}").json() for job in jobs]
    assert (shown[1]["status"], shown[1]["made_file"]) == ("cancelled", None)
    assert (shown[0]["status"], shown[0]["report"]["rows_made"]) == ("succeeded", 1)
    listed = {one["id"]: one for one in api.get("/v1/files").json()["data"]}
    file, dropped = listed[shown[0]["made_file"]], listed[shown[0]["dropped_file"]]
    assert len(listed) == 4, "the source, the metrics of the adapter's job, and these"
    assert len(list(service.workspace.files.iterdir())) == 3
    assert (file["purpose"], file["status"], file["report"]["rows"]) == ("fine-tune", "processed", 1)
    assert file["filename"].endswith("-answers.jsonl")
    assert (dropped["purpose"], dropped["lineage"]) == ("synthesis-dropped", None)
    lineage = file["lineage"]
    assert (lineage["synthesis"], lineage["file"], lineage["seed"]) == (jobs[0].id, FILE["id"], 1)
    assert (lineage["teacher"], lineage["teacher_content"], lineage["prompts_version"]) == (FT, "a" * 64, 1)
    assert lineage["task"] == {"type": "answers", "n": 1, "keep": "all", "keep_refusals": False}
