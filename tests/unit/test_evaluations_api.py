"""Evaluations over HTTP: what names stand for, what is refused before anything runs, and what is shown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from rows import FILE, PRODUCT, create_job
from suites import write_suites
from tests.conftest import Publish
from tunewright.api.evaluations import creation
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.kinds.evaluation.kind import Evaluation
from tunewright.kinds.evaluation.models import EvaluationPlan, EvaluationRequest
from tunewright.kinds.kind import WITHOUT_BASE, JobRefused, Service
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store.records import EngineInfo
from tunewright.store.states import EngineState, FileStatus, JobState, ModelState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

EVALUATIONS = "/v1/evaluations"
FT = "ft:tiny:a:1"
GRADER = {
    "type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}",
    "reference": "{{ item.expected }}",
}  # fmt: skip


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def settings(data: Workspace) -> Settings:
    return Settings(data_dir=data.path, base=[f"tiny={embedded_base_path()}"], max_queued_jobs=3)


@pytest.fixture
def api(
    built: dict[str, Any], settings: Settings, store: Store, data: Workspace, publish_model: Publish
) -> TestClient:
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    info = EngineInfo(
        device="cpu", internal_name="tiny", fingerprint="f" * 64, max_model_len=300, max_num_seqs=20
    )
    store.engines.declare(["tiny", "new"])
    store.engines.starting("tiny", "/tmp/s", info)
    store.engines.set_state("tiny", EngineState.READY)
    publish_model({**PRODUCT, "name": FT, "base": "tiny", "sha256": "a" * 64, "state": ModelState.READY})
    store.aliases.put("one", (AliasTarget(FT),), None, None)
    store.aliases.put("two", (AliasTarget(FT), AliasTarget("tiny")), None, None)
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def create(api: TestClient, **fields: Any) -> Any:
    return api.post(EVALUATIONS, json={"model": "one", "data": FILE["id"], **fields})


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_names_are_looked_up_once(api: TestClient, store: Store) -> None:
    answer = create(api, against=["tiny"], metadata={"team": "a"})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["id"].startswith("eval-")
    assert (made["object"], made["model"], made["against"]) == ("evaluation", FT, ["tiny"])
    assert made["models"] == [
        {"name": FT, "asked": "one", "content": "a" * 64},
        {"name": "tiny", "asked": "tiny", "content": "f" * 64},
    ]
    store.aliases.put("one", (AliasTarget("tiny"),), None, None)
    assert api.get(f"{EVALUATIONS}/{made['id']}").json() == made
    assert [one["id"] for one in api.get(EVALUATIONS).json()["data"]] == [made["id"]]
    events = api.get(f"{EVALUATIONS}/{made['id']}/events").json()["data"]
    assert events[0]["object"] == "evaluation.event"
    assert error(api.get(f"{EVALUATIONS}/{create_job(store).id}"), 404)["code"] == "evaluation_not_found"


def test_what_it_needs_is_kept_until_it_has_ended(api: TestClient) -> None:
    made = create(api, against=["tiny"]).json()
    assert error(api.delete(f"/v1/files/{FILE['id']}"))["code"] == "file_in_use"
    api.delete("/v1/aliases/one")
    api.delete("/v1/aliases/two")
    refused = error(api.delete(f"/v1/models/{FT}"))
    assert (refused["code"], made["id"] in refused["message"]) == ("model_in_use", True)
    assert api.post(f"{EVALUATIONS}/{made['id']}/cancel").json()["status"] == "cancelled"
    assert api.delete(f"/v1/models/{FT}").status_code == 200


DEEP: dict[str, Any] = {}
for _ in range(900):
    DEEP = {"not": DEEP}


def test_a_schema_is_checked_in_a_process_with_limits(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 kB took 5 s of the process that answers everybody."""
    monkeypatch.setattr(creation, "_SCHEMA_SECONDS", 1)
    refused = error(create(api, json_schema={"anyOf": [{}] * 15_000}), 400)
    assert (refused["param"], "took more than 1 s" in refused["message"]) == ("json_schema", True)


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "none"}, 404, "model", "No such model"),
        ({"model": "two"}, 400, "model", f"name one of {FT}, tiny"),
        ({"model": "new"}, 503, None, "has not been ready yet"),
        ({"against": ["tiny", FT]}, 400, "against.1", "named twice"),
        ({"against": ["none"]}, 404, "against.0", "No such model"),
        ({"data": "file-none"}, 400, "data", "No such file"),
        ({"metrics": []}, 400, "metrics", ""),
        ({"metrics": ["accuracy", "accuracy"]}, 400, "metrics", "at most once"),
        ({"metrics": ["schema_valid"]}, 400, "json_schema", "needs a `json_schema`"),
        ({"json_schema": {"type": "thing"}}, 400, "json_schema", "is no JSON schema: type"),
        ({"json_schema": DEEP}, 400, "json_schema", "nested more than"),
        ({"json_schema": {"a": [{"const": "\0"}]}}, 400, "json_schema", "U+0000"),
        ({"metrics": ["judge"], "against": ["tiny"]}, 400, "judge", "needs a `judge`"),
        ({"judge": {"model": "tiny"}}, 400, "against", "name them in `against`"),
        ({"judge": {}, "against": ["tiny"]}, 400, "judge", "give `model`"),
        ({"judge": {"model": "tiny", "external": True}, "against": ["tiny"]}, 400, "judge", "give `model`"),
        ({"judge": {"external": True}, "against": ["tiny"]}, 400, "judge.external", "--judge-url"),
        ({"judge": {"model": "none"}, "against": ["tiny"]}, 404, "judge.model", "No such model"),
        ({"judge": {"model": "two"}, "against": ["tiny"]}, 400, "judge.model", "name one of"),
        ({"metrics": ["grader"]}, 400, "grader", "needs a `grader`"),
        ({"grader": {**GRADER, "input": "{{ item.answer }}"}}, 400, "grader", "item.asked and item.expected"),
        ({"grader": {**GRADER, "operation": "near"}}, 400, "grader", ""),
        (
            {"grader": {"type": "python", "name": "p", "source": "def grade(s, i): return 1"}},
            400,
            "grader",
            "python",
        ),
        ({"require": [{"metric": "grader", "min": 0.5}]}, 400, "require.0", "grader"),
        ({"require": []}, 400, "require", ""),
        ({"require": [{"metric": "accuracy"}]}, 400, "require.0", "give `min`"),
        ({"require": [{"metric": "accuracy", "min": 0.5}] * 2}, 400, "require.0", "named twice"),
        (
            {"require": [{"metric": "bleu", "min": 5}], "metrics": ["chrf"]},
            400,
            "require.0",
            "not among `metrics`",
        ),
        (
            {"require": [{"metric": "bleu", "max_drop": 5}]},
            400,
            "require.0.max_drop",
            "name them in `against`",
        ),
        ({"require": [{"metric": "judge", "min": 0.5}]}, 400, "require.0", "judge"),
        ({"require": [{"metric": "schema_valid", "min": 1}]}, 400, "json_schema", "needs a `json_schema`"),
        ({"rows": 0}, 400, "rows", ""),
        ({"extract": "all"}, 400, "extract", ""),
        ({"temperature": 3}, 400, "temperature", ""),
        ({"reading": {"columns": {"question": "q"}}}, 400, "reading.columns", "question"),
        ({"unknown": 1}, 400, "unknown", ""),
    ],
)
def test_what_cannot_succeed_is_refused(
    api: TestClient, fields: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    refused = error(create(api, **fields), status)
    assert (refused["param"] or "").startswith(param or "")
    assert words in refused["message"]
    assert api.get(EVALUATIONS).json()["data"] == []


def test_a_judge_is_looked_up_and_kept_as_the_others_are(
    api: TestClient, settings: Settings, store: Store, data: Workspace
) -> None:
    answer = create(
        api,
        model="tiny",
        against=["new"],
        judge={"model": "one", "calibrate": 5},
        metrics=["judge", "rougeL"],
    )
    assert answer.status_code == 503, "the other base has not started"
    judge = {"model": "one", "calibrate": 5}
    limits = [{"metric": "judge", "min": 0.5}, {"metric": "rougeL", "max_drop": 0.1}]
    made = create(api, model=FT, against=["tiny"], judge=judge, require=limits).json()
    assert (made["judge"]["model"], made["judge"]["calibrate"], made["judge"]["external"]) == (FT, 5, False)
    assert made["require"][0] == {"metric": "judge", "min": 0.5, "max": None, "max_drop": None}
    job = store.jobs.get(made["id"])
    assert job is not None
    assert job.weights("model") == ["a" * 64, "a" * 64], "the judge is kept too"
    data.file(FILE["id"]).write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    kind, service = Evaluation(), Service(settings, store, data, on_gpu=False)
    store.jobs.mark_valid(job.id, kind.validate(service, job, WITHOUT_BASE).resolved.model_dump(), "", ())  # type: ignore[union-attr]
    queued = store.jobs.get(job.id)
    assert queued is not None
    spec = kind.spec(service, queued, WITHOUT_BASE)
    assert spec.judge is not None
    assert (spec.judge.name, spec.judge.content, spec.judge.at_once, spec.judge.calibrate) == (
        FT,
        "a" * 64,
        5,
        5,
    )
    assert [limit.metric for limit in spec.require or ()] == ["judge", "rougeL"]


def test_a_quarantined_adapter_is_no_model_to_ask(api: TestClient, publish_model: Publish) -> None:
    common = {**PRODUCT, "base": "tiny", "sha256": "b" * 64}
    publish_model({**common, "name": "ft:tiny:b:2", "state": ModelState.QUARANTINED})
    refused = error(create(api, against=["ft:tiny:b:2"]))
    assert (refused["code"], refused["param"]) == ("model_quarantined", "against.0")


def test_rows_without_an_answer_are_refused(api: TestClient, store: Store) -> None:
    store.files.add(**{**FILE, "id": "file-text"})
    report = {"container": "jsonl", "format": "text", "kind": "text", "rows": 1, "problem": None}
    store.files.finish_check("file-text", FileStatus.PROCESSED, report)
    assert "no question with an answer" in error(create(api, data="file-text"))["message"]


def test_its_process_gets_a_quarter_of_an_engine_and_half_of_its_context(
    api: TestClient, settings: Settings, store: Store, data: Workspace
) -> None:
    id = create(api, against=["tiny"]).json()["id"]
    data.file(FILE["id"]).write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    kind, service = Evaluation(), Service(settings, store, data, on_gpu=False)
    job = store.jobs.get(id)
    assert job is not None
    assert isinstance(job.request, EvaluationRequest)
    valid = kind.validate(service, job, WITHOUT_BASE)
    assert valid.resolved == EvaluationPlan(rows_in_file=1, has_template=True, max_tokens=150)
    store.jobs.mark_valid(id, valid.resolved.model_dump(), valid.summary, ())
    queued = store.jobs.get(id)
    assert queued is not None
    assert queued.state is JobState.QUEUED
    spec = kind.spec(service, queued, WITHOUT_BASE)
    assert [(one.name, one.content[0], one.at_once) for one in spec.models] == [
        (FT, "a", 5),
        ("tiny", "f", 5),
    ]
    assert (spec.max_tokens, spec.rows_in_file, spec.rows) == (150, 1, None)
    assert spec.socket.endswith("/gateway.sock")


# suites


@pytest.fixture
def with_questions(api: TestClient, built: dict[str, Any], store: Store, data: Workspace) -> TestClient:
    """The service of an operator who provides questions."""
    questions = write_suites(data.path / "questions")
    settings = Settings(
        data_dir=data.path,
        base=[f"tiny={embedded_base_path()}"],
        eval_data=questions,
        python_graders="sandboxed",
    )
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    return api


def ask_suite(api: TestClient, name: str = "mmlu", **fields: Any) -> Any:
    suite = {"name": name, **fields.pop("suite", {})}
    return api.post(EVALUATIONS, json={"model": "one", "suite": suite, **fields})


def test_an_adapter_is_compared_with_its_base_by_a_suite(
    with_questions: TestClient, store: Store, data: Workspace
) -> None:
    made = ask_suite(with_questions, suite={"shots": 2}, rows=2).json()

    assert (made["data"], made["filename"], made["against"]) == (None, "", ["tiny"])
    assert made["suite"] == {"name": "mmlu", "shots": 2, "samples": 1}
    job = store.jobs.get(made["id"])
    assert job is not None
    settings = with_questions.app.state.context.settings  # type: ignore[attr-defined]
    service = Service(settings, store, data, on_gpu=False)
    validated = Evaluation().validate(service, job, WITHOUT_BASE)
    assert isinstance(validated.resolved, EvaluationPlan)
    assert validated.resolved.suite_sha256 is not None
    spec = Evaluation().spec(service, replace(job, resolved=validated.resolved), WITHOUT_BASE)
    assert spec.suite is not None
    assert (spec.file, spec.suite.name, spec.suite.shots) == (None, "mmlu", 2)
    assert spec.suite.python == "sandboxed"
    assert [model.at_once for model in spec.models] == [1, 1], "four choices are four sequences"
    assert spec.models[0].cache is None
    assert spec.models[1].cache is not None
    other = Evaluation().spec(
        service, replace(job, seed=job.seed + 1, resolved=validated.resolved), WITHOUT_BASE
    )
    assert other.models[1].cache != spec.models[1].cache, "other rows are drawn"


def test_a_base_is_compared_with_nothing(with_questions: TestClient) -> None:
    assert ask_suite(with_questions, model="tiny").json()["against"] == []


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("name", "fields", "param", "code"),
    [
        ("mmlu", {"data": FILE["id"]}, "data", "missing_parameter"),
        ("mmlu", {"metrics": ["accuracy"]}, "metrics", "invalid_value"),
        ("mmlu", {"extract": "last_line"}, "extract", "invalid_value"),
        ("mmlu", {"suite": {"samples": 2}}, "suite.samples", "invalid_value"),
        ("humaneval", {"suite": {"samples": 2}}, "temperature", "invalid_value"),
    ],
)
def test_what_a_suite_cannot_be_asked_with_is_refused(
    with_questions: TestClient, name: str, fields: dict[str, Any], param: str, code: str
) -> None:
    told = error(ask_suite(with_questions, name, **fields))
    assert (told["param"], told["code"]) == (param, code)


def test_questions_that_are_not_there_are_told(with_questions: TestClient, data: Workspace) -> None:
    shutil.rmtree(data.path / "questions" / "ceval" / "val")
    told = error(ask_suite(with_questions, "ceval"))
    assert told["code"] == "no_eval_data"
    assert "no ceval/val/*_val.csv" in told["message"]


def test_without_questions_or_leave_nothing_is_asked(api: TestClient, built: dict[str, Any]) -> None:
    told = error(ask_suite(api))
    assert (told["code"], "--eval-data" in told["message"]) == ("no_eval_data", True)
    context = built["server"].app.state.context
    questions = write_suites(context.workspace.path / "questions")
    settings = Settings(
        data_dir=context.workspace.path, base=[f"tiny={embedded_base_path()}"], eval_data=questions
    )
    built["server"].app.state.context = replace(context, settings=settings)
    told = error(ask_suite(api, "humaneval"))
    assert (told["code"], "--python-graders" in told["message"]) == ("python_graders_off", True)
    assert error(create(api, data=None))["param"] == "data"
    assert error(create(api, metrics=["pass_at_1"]))["param"] == "metrics"


# latency


def measure(api: TestClient, **fields: Any) -> Any:
    return api.post(EVALUATIONS, json={"model": "one", "metrics": ["latency"], **fields})


def test_latency_needs_no_data(api: TestClient, store: Store, data: Workspace, settings: Settings) -> None:
    made = measure(api, against=["tiny"], load={"at_once": [8, 1], "answer_tokens": 64}).json()

    assert (made["metrics"], made["data"], made["suite"]) == (["latency"], None, None)
    assert made["load"] == {"at_once": [8, 1], "prompt_tokens": 128, "answer_tokens": 64, "requests": 100}
    job = store.jobs.get(made["id"])
    assert job is not None
    rates = settings.model_copy(
        update={"jobs": settings.jobs.model_copy(update={"price_per_hour": 2.5, "currency": "EUR"})}
    )
    service = Service(rates, store, data, on_gpu=False)
    validated = Evaluation().validate(service, job, WITHOUT_BASE)
    spec = Evaluation().spec(service, replace(job, resolved=validated.resolved), WITHOUT_BASE)
    assert spec.loads is not None
    assert (spec.loads.at_once, spec.loads.price_per_hour, spec.loads.currency) == ([1, 8], 2.5, "EUR")
    assert spec.max_tokens == 64


def test_without_loads_they_are_one_and_the_share(
    api: TestClient, store: Store, data: Workspace, settings: Settings
) -> None:
    job = store.jobs.get(measure(api).json()["id"])
    assert job is not None
    service = Service(settings, store, data, on_gpu=False)
    validated = Evaluation().validate(service, job, WITHOUT_BASE)
    spec = Evaluation().spec(service, replace(job, resolved=validated.resolved), WITHOUT_BASE)
    assert spec.loads is not None
    assert spec.loads.at_once == [1, 5], "a quarter of 20 sequences"


def test_more_tokens_than_the_context_are_refused(
    api: TestClient, store: Store, data: Workspace, settings: Settings
) -> None:
    job = store.jobs.get(measure(api, load={"prompt_tokens": 200, "answer_tokens": 101}).json()["id"])
    assert job is not None
    with pytest.raises(JobRefused, match="context of tiny, 300") as refused:
        Evaluation().validate(Service(settings, store, data, on_gpu=False), job, WITHOUT_BASE)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metrics": ["latency", "accuracy"]}, "metrics"),
        ({"data": FILE["id"]}, "data"),
        ({"suite": {"name": "mmlu"}}, "suite"),
        ({"rows": 3}, "rows"),
        ({"load": {"at_once": [0]}}, "load.at_once.0"),
        ({"load": {"at_once": []}}, "load.at_once"),
        ({"metrics": ["accuracy"], "data": FILE["id"], "load": {}}, "load"),
    ],
)
def test_what_latency_cannot_be_measured_with_is_refused(
    api: TestClient, fields: dict[str, Any], param: str
) -> None:
    assert error(measure(api, **fields))["param"] == param
