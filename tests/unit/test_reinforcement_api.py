"""Jobs of the method reinforcement: what is taken, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from counted import count_here
from preferences import COLOURS
from rows import PRODUCT, create_job, engine_info
from tests.conftest import Publish
from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.config import Settings
from tunewright.kinds.fine_tuning.grading_models import models_that_grade, told_of_models
from tunewright.kinds.fine_tuning.models import GRADING_MODEL, FineTuningRequest
from tunewright.kinds.fine_tuning.sampling import with_sampling
from tunewright.kinds.grading import missing_item
from tunewright.kinds.kind import JobRefused, Service
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import DataFormat, InvalidData, RowKind, check_file, read_rows
from tunewright.rows.reading import Reading
from tunewright.store.states import EngineState, JobState, ModelState
from tunewright.store.store import Store

EXACT = {
    "type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer.colour }}",
}  # fmt: skip
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}], "answer": {"colour": colour}}
    for n, colour in enumerate(COLOURS)
]


def content(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def method(grader: Any = EXACT, **hyperparameters: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}


def asked(api: TestClient, rows: list[Any] = ROWS, **more: Any) -> Any:  # noqa: F811
    body = {"model": BASE, "training_file": upload(api, content(rows))["id"], "method": method(), **more}
    return api.post("/v1/fine_tuning/jobs", json=body)


def test_a_job_is_taken_and_shown_as_openai_does(api: TestClient) -> None:  # noqa: F811
    given = method(
        compute_multiplier=0.5, eval_interval=3, eval_samples=2, n_epochs="auto", reasoning_effort="default"
    )
    answer = asked(api, method={**given, "supervised": None, "dpo": None})
    assert answer.status_code == 200, answer.text
    job = FineTuningJob.model_validate(answer.json())
    assert job.method is not None
    assert job.method.reinforcement is not None
    shown = job.method.reinforcement
    assert shown.grader.name == "exact"
    assert shown.hyperparameters is not None
    assert (shown.hyperparameters.compute_multiplier, shown.hyperparameters.eval_samples) == (0.5, 2)
    assert not {"compute_multiplier", "beta"} & answer.json()["hyperparameters"].keys()
    assert api.get(f"/v1/fine_tuning/jobs/{job.id}").json() == answer.json()


def test_a_validated_job_shows_what_auto_became(store: Store) -> None:
    resolved = resolve(
        tuning=TuningOptions(), hyperparameters=HyperparameterOptions(compute_multiplier=0.5), rows=64, context=1024,
        max_rank=64, device="cpu", method="reinforcement",
    )  # fmt: skip
    request = {"method": "reinforcement", "grader": EXACT}
    shown = JobObject.of(create_job(store, request=request, state=JobState.QUEUED, resolved=resolved))
    made = shown.model_dump(mode="json")
    assert made["method"]["reinforcement"]["hyperparameters"] == {
        "n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": "auto", "beta": 0.0, "compute_multiplier": "auto",
        "eval_interval": "auto", "eval_samples": 1, "reasoning_effort": None,
    }  # fmt: skip
    options = (
        "num_generations",
        "max_completion_length",
        "temperature",
        "sampling",
        "per_device_batch_size",
        "learning_rate",
    )
    assert [made["tuning"][name] for name in options] == [4, 256, 1.0, "trainer", 1, 1e-5]
    assert resolved.steps(65) == 24, "a row that fills no step is left out"
    supervised = JobObject.of(create_job(store)).model_dump(mode="json")
    assert not {"num_generations", "eval_samples"} & supervised["tuning"].keys()


@pytest.mark.parametrize(
    ("asked", "device", "engine", "expected"),
    [
        ("auto", "cuda", {}, "engine"),
        ("auto", "cpu", {}, "trainer"),
        ("engine", "cpu", {}, "engine"),
        ("trainer", "cuda", {}, "trainer"),
        ("auto", "cuda", {"max_adapters": 1}, "trainer"),
        ("auto", "cuda", {"max_lora_rank": 4}, "trainer"),
        ("auto", "cuda", {"enable_lora": False}, "trainer"),
        ("engine", "cuda", {"max_adapters": 1}, "refused"),
        ("auto", "cuda", None, "trainer"),
        ("engine", "cuda", None, "refused"),
    ],
)
def test_what_makes_the_answers_depends_on_device_and_engine(
    store: Store, asked: str, device: str, engine: dict[str, Any] | None, expected: str
) -> None:
    resolved = resolve(
        tuning=TuningOptions(sampling=asked, rank=8), hyperparameters=HyperparameterOptions(), rows=64, context=1024,
        max_rank=64, device=device, method="reinforcement",
    )  # fmt: skip
    if engine is not None:
        store.engines.declare([BASE])
        store.engines.starting(
            BASE, "/none", engine_info(**{"max_adapters": 4, "max_lora_rank": 16, **engine})
        )
    if expected == "refused":
        with pytest.raises(JobRefused) as refused:
            with_sampling(store, BASE, resolved, asked)
        assert refused.value.param == "tuning.sampling"
    else:
        made, text = with_sampling(store, BASE, resolved, asked)
        assert made.sampling == expected
        assert expected in text


PROGRAM = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
JUDGE = {"type": "score_model", "name": "j", "model": BASE, "input": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader", "missing_parameter"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.reinforcement.grader",
         "missing_parameter"),
        ({"method": method({**EXACT, "operation": "x"})}, "method.reinforcement.grader.operation", "invalid_value"),
        ({"method": method({"type": "regex", "name": "r", "pattern": "("})}, "method.reinforcement.grader.pattern",
         "invalid_value"),
        ({"method": method(PROGRAM)}, "method.reinforcement.grader", "unsupported"),
        ({"method": method(reasoning_effort="high")}, "method.reinforcement.hyperparameters.reasoning_effort",
         "invalid_value"),
        ({"method": method(compute_multiplier=0)}, "method.reinforcement.hyperparameters.compute_multiplier",
         "invalid_value"),
        ({"method": method(beta=0.1), "tuning": {"type": "full"}}, "method.reinforcement.hyperparameters.beta",
         "unsupported"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": EXACT, "response_format": {"a": 1}}}},
         "method.reinforcement.response_format", "unsupported"),
        ({"method": {**method(), "type": "supervised"}}, "method.reinforcement", "invalid_value"),
        ({"tuning": {"group_by_length": True}}, "tuning.group_by_length", "unsupported"),
        ({"tuning": {"torch_compile": True}}, "tuning.torch_compile", "unsupported"),
        ({"tuning": {"sampling": "engine", "temperature": 0.5}}, "tuning.sampling", "invalid_value"),
        ({"tuning": {"sampling": "engine", "type": "qlora"}}, "tuning.sampling", "invalid_value"),
        ({"tuning": {"sampling": "engine", "algorithm": "rloo"}}, "tuning.sampling", "invalid_value"),
        ({"tuning": {"sampling": "engine", "use_dora": True}}, "tuning.sampling", "invalid_value"),
        ({"tuning": {"sampling": "nobody"}}, "tuning.sampling", "invalid_value"),
        ({"tuning": {"dropout": 0.1}}, "tuning.dropout", "invalid_value"),
        ({"tuning": {"loss_type": "ipo"}}, "tuning.loss_type", "invalid_value"),
        ({"method": None, "tuning": {"num_generations": 4}}, "training_file", "invalid_training_file"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_name(
    api: TestClient,  # noqa: F811
    change: dict[str, Any],
    param: str,
    code: str,
) -> None:
    refused = error(asked(api, **change), 400)
    assert (refused["param"], refused["code"]) == (param, code), refused


def serve(store: Store, publish_model: Publish, **changes: Any) -> None:
    """The base, which the engine serves, and an adapter on it."""
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/s", engine_info(max_num_seqs=20, **changes))
    store.engines.set_state(BASE, EngineState.READY)
    publish_model({**PRODUCT, "name": ADAPTER, "base": BASE, "sha256": "a" * 64, "state": ModelState.READY})


ADAPTER = f"ft:{BASE}:judge:1"


@pytest.mark.each_database
def test_models_that_grade_are_looked_up_once_and_kept(
    api: TestClient,  # noqa: F811
    store: Store,
    publish_model: Publish,
    data: Workspace,
) -> None:
    serve(store, publish_model)
    store.aliases.put("judge", (AliasTarget(ADAPTER),), None, None)
    grader = {
        "type": "multi", "name": "both", "calculate_output": "exact + first + second + base",
        "graders": {
            "exact": EXACT, "first": {**JUDGE, "model": "judge"}, "second": {**JUDGE, "model": ADAPTER}, "base": JUDGE,
        },
    }  # fmt: skip
    answer = asked(api, method=method(grader))
    assert answer.status_code == 200, answer.text
    assert answer.json()["method"]["reinforcement"]["grader"]["graders"]["first"]["model"] == "judge"
    job = store.jobs.get(answer.json()["id"])
    assert job is not None
    assert isinstance(job.request, FineTuningRequest)
    store.aliases.put("judge", (AliasTarget(BASE),), None, None)
    assert job.weights(GRADING_MODEL) == ["a" * 64]
    refused = error(api.delete(f"/v1/models/{ADAPTER}"), 400)
    assert refused["code"] == "model_in_use"
    service = Service(Settings(data_dir=data.path, base=[], request_timeout=7), store, data, False)
    models = models_that_grade(service, job, job.request)
    assert models is not None
    assert (models.project, models.key, models.request_timeout) == (job.project, job.api_key_id, 7)
    fingerprint = PRODUCT["base_fingerprint"]
    assert {name: (one.name, one.content, one.at_once) for name, one in models.by_grader.items()} == {
        "first": (ADAPTER, "a" * 64, 5), "second": (ADAPTER, "a" * 64, 5), "base": (BASE, fingerprint, 5),
    }  # fmt: skip
    assert f"graded by {ADAPTER}, {BASE}" in told_of_models(job.request)


def test_a_model_that_cannot_grade_is_refused_by_its_name(
    api: TestClient,  # noqa: F811
    store: Store,
    publish_model: Publish,
) -> None:
    serve(store, publish_model)
    grader = {
        "type": "multi",
        "name": "m",
        "calculate_output": "a",
        "graders": {"a": {**JUDGE, "model": "none"}},
    }
    refused = error(asked(api, method=method(grader)), 404)
    assert (refused["param"], refused["code"]) == (
        "method.reinforcement.grader.graders.a.model",
        "model_not_found",
    )
    store.of("proj-other").aliases.put("theirs", (AliasTarget(BASE),), None, None)
    refused = error(asked(api, method=method({**JUDGE, "model": "theirs"})), 404)
    assert refused["code"] == "model_not_found"
    for state, code in (
        (ModelState.QUARANTINED, "model_quarantined"),
        (ModelState.MERGE_ONLY, "model_merge_only"),
    ):
        name = f"{ADAPTER}{state.value}"
        publish_model({**PRODUCT, "name": name, "base": BASE, "sha256": code.ljust(64, "b"), "state": state})
        refused = error(asked(api, method=method({**JUDGE, "model": name})), 400)
        assert (refused["param"], refused["code"]) == ("method.reinforcement.grader.model", code)
    store.engines.starting(BASE, "/tmp/s", engine_info(has_chat_template=False))
    store.engines.set_state(BASE, EngineState.READY)
    refused = error(asked(api, method=method(JUDGE)), 400)
    assert (refused["param"], refused["code"]) == ("method.reinforcement.grader.model", "no_chat_template")


def test_a_grader_that_refers_to_what_a_row_lacks_is_refused_with_the_line(api: TestClient) -> None:  # noqa: F811
    rows = [*ROWS[:5], {**ROWS[5], "answer": "red"}, *ROWS[6:]]
    refused = error(asked(api, rows), 400)
    assert (refused["param"], refused["code"]) == ("method.reinforcement.grader", "invalid_grader")
    assert "line 6 has no item.answer.colour" in refused["message"]
    file = upload(api, content(ROWS))["id"]
    held_out = upload(api, content(rows))["id"]
    body = {"model": BASE, "training_file": file, "validation_file": held_out, "method": method()}
    assert f"File {held_out}, line 6" in error(api.post("/v1/fine_tuning/jobs", json=body), 400)["message"]


def test_rows_that_the_method_cannot_learn_from_are_refused(api: TestClient) -> None:  # noqa: F811
    refused = error(asked(api, [{"prompt": "a", "completion": "b"}]), 400)
    assert "reinforcement needs graded rows" in refused["message"]
    refused = error(asked(api, method=None), 400)
    assert "reinforcement could" in refused["message"]


def test_a_plan_counts_the_memory_of_making_answers_and_says_that_time_is_not_known(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_here(monkeypatch)
    file = upload(api, content(ROWS))["id"]
    tuning = {"max_completion_length": 32, "num_generations": 4, "batch_size": 2}
    body = {"model": BASE, "training_file": file, "method": method(), "machine": "H100", "tuning": tuning}
    answer = api.post("/v1/fine_tuning/plan", json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert all(one["seconds"] is None and one["memory"]["total"] > 0 for one in made["methods"])
    warned = {one["code"]: one["message"] for one in made["warnings"]}
    assert "Memory counts answers of 32 tokens" in warned["time_not_predicted"]
    assert "all 8 that are made for a step" in warned["time_not_predicted"]
    assert not {"rows_cut", "prompts_too_long", "rows_padded"} & warned.keys()
    long = {**body, "tuning": {**tuning, "max_length": 40}}
    warned = {
        one["code"]: one["message"] for one in api.post("/v1/fine_tuning/plan", json=long).json()["warnings"]
    }
    assert "the 8 tokens that tuning.max_completion_length leaves" in warned["prompts_too_long"]


# the rows


def test_a_row_that_ends_with_what_is_asked_and_has_further_fields_is_graded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content(ROWS))
    report = check_file(path)
    assert (report.format, report.kind) == (DataFormat.OPENAI_REINFORCEMENT, RowKind.GRADED)
    assert report.has_messages
    first = next(iter(read_rows(path)))[1]
    assert first == {"messages": ROWS[0]["messages"], "item": ROWS[0]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
        ({"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}, "unknown field"),
        ({"messages": [{"role": "user"}], "answer": "b"}, "content is missing"),
        ({"messages": [{"role": "user", "content": "a"}], "answer": "b", "images": ["x"]}, "images"),
        ({"messages": [{"role": "user", "content": "a"}], "answer": "b", "tools": [1]}, "tools"),
    ],
)
def test_faults_of_such_rows_are_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content([row]))
    with pytest.raises(InvalidData, match=f"line 1: .*{told}"):
        check_file(path)


def test_what_a_file_lacks_is_looked_for_in_all_rows_or_the_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content([*ROWS, {**ROWS[0], "answer": {"color": "x"}}]))
    from tests.unit.test_graders import ADAPTER

    grader = ADAPTER.validate_python(EXACT)
    assert missing_item(path, Reading(), grader, 8) is None
    told = missing_item(path, Reading(), grader)
    assert told == "line 9 has no item.answer.colour, which the grader refers to"
