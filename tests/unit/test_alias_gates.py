"""Aliases that require an evaluation of new targets: what is refused, what is forced, and what the history says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from judged import Range, add_evaluation, report_of
from races import at_once
from rows import FILE, PRODUCT, Publish, engine_info
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings
from tunewright.errors import Conflict
from tunewright.metrics.verdicts import Reason, TargetVerdict, Verdict, overall
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store.states import EngineState, JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

BOT, BASE, OLD, NEW = "quiz", "tiny", "ft:tiny:a:1", "ft:tiny:b:2"
CONTENT = {BASE: PRODUCT["base_fingerprint"], OLD: "1" * 64, NEW: "2" * 64}
EVALUATION = {"data": FILE["id"], "metric": "accuracy"}
REQUIRE = {"evaluation": EVALUATION, "min": 0.8}
Evaluate = Callable[..., str]


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    nowhere = Store.open("sqlite://")
    yield build(Settings(), nowhere)[0]
    nowhere.close()


@pytest.fixture
def api(server: Any, store: Store, data: Workspace, publish_model: Publish) -> TestClient:
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/s", engine_info())
    store.engines.set_state(BASE, EngineState.READY)
    for name in (OLD, NEW):
        publish_model({"name": name, "base": BASE, "sha256": CONTENT[name]})
    server.app.state.context = ServiceContext(Settings(data_dir=data.path), store, data, _control)
    return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def evaluate(store: Store) -> Evaluate:
    """Adds an evaluation that has succeeded, and returns its id."""

    def add(
        model: str,
        figure: Range = (0.9, 0.85, 0.94),
        *,
        metric: str = "accuracy",
        rows: int = 120,
        against: dict[str, Range] | None = None,
        **request: Any,
    ) -> str:
        report = report_of(model, figure, metric=metric, rows=rows, against=against)
        return add_evaluation(store, CONTENT, report, **request)

    return add


def put(api: TestClient, *models: str, **more: Any) -> Any:
    user = {"X-Tunewright-User": more.pop("user")} if "user" in more else {}
    body = {"targets": [{"model": model} for model in models], "wait": False, **more}
    return api.put(f"/v1/aliases/{BOT}", json=body, headers=user)


def ok(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: Any) -> str:
    assert answer.status_code == 409, answer.text
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("gate_not_passed", "targets")
    return str(error["message"])


def history(api: TestClient) -> list[dict[str, Any]]:
    return list(ok(api.get(f"/v1/aliases/{BOT}/history"))["data"])


def test_a_flip_to_a_model_that_has_not_passed_is_refused_with_the_numbers(
    api: TestClient, evaluate: Evaluate
) -> None:
    made = ok(put(api, OLD))
    assert made["require"] is None
    gated = ok(put(api, OLD, require=REQUIRE))
    assert gated["version"] == 2, "a requirement is for new targets: the present one stays"
    assert gated["require"]["evaluation"]["sha256"] == FILE["sha256"]
    told = refused(put(api, NEW))
    assert f"tunewright evals create --model {NEW} --file {FILE['id']} --metric accuracy" in told
    id = evaluate(NEW, (0.6, 0.5, 0.7))
    told = refused(put(api, NEW))
    assert f"{NEW}: fail: accuracy is 0.6 (0.5 to 0.7) on 120 rows; min is 0.8 ({id})" in told
    evaluate(NEW, (0.82, 0.7, 0.9), rows=500)
    assert "0.6 (0.5 to 0.7)" in refused(put(api, NEW)), "the newest that decides counts"
    assert ok(api.get(f"/v1/aliases/{BOT}")) == gated
    passed = evaluate(NEW, (0.9, 0.85, 0.94))
    flipped = ok(put(api, NEW, user="ann"))
    assert (flipped["version"], flipped["require"]) == (3, gated["require"])
    gate = history(api)[0]["gate"]
    assert (gate["forced"], gate["targets"][0]["model"], gate["targets"][0]["evaluation"]) == (
        False,
        NEW,
        passed,
    )
    assert gate["targets"][0]["reasons"][0]["low"] == 0.85


def test_too_few_rows_are_an_answer_of_their_own(api: TestClient, evaluate: Evaluate) -> None:
    ok(put(api, OLD))
    ok(put(api, OLD, require=REQUIRE))
    evaluate(NEW, (0.85, 0.75, 0.92))
    told = refused(put(api, NEW))
    assert "not enough data to tell" in told
    assert "rows would, if the figure stays" in told
    evaluate(NEW, (1.0, 0.9, 1.0), rows=12)
    assert "0.85 (0.75 to 0.92)" not in (told := refused(put(api, NEW)))
    assert "fewer than 30 rows are not judged" in told


def test_force_flips_and_the_history_says_who_when_and_against_which_numbers(
    api: TestClient, evaluate: Evaluate
) -> None:
    ok(put(api, OLD))
    ok(put(api, OLD, require=REQUIRE))
    id = evaluate(NEW, (0.6, 0.5, 0.7))
    forced = ok(put(api, NEW, force=True, user="ann"))
    newest = history(api)[0]
    assert (newest["version"], newest["who"], newest["created_at"]) == (3, "ann", forced["updated_at"])
    assert newest["gate"]["forced"]
    assert newest["gate"]["targets"][0] == {
        "verdict": "fail",
        "model": NEW,
        "evaluation": id,
        "reasons": [
            {
                "name": "min", "verdict": "fail", "metric": "accuracy", "against": None, "value": 0.6, "low": 0.5,
                "high": 0.7, "limit": 0.8, "message": "accuracy is 0.6 (0.5 to 0.7) on 120 rows; min is 0.8",
            }
        ],
    }  # fmt: skip
    assert newest["why"].startswith(f"set by force, though {NEW}: fail: accuracy is 0.6")
    assert history(api)[1]["gate"] is None, "no new target, nothing judged"


@pytest.mark.parametrize(
    "difference",
    [{"sha256": "9" * 64}, {"extract": "last_number"}, {"temperature": 1.0}, {"metric": "macro_f1"},
     {"reading": {"columns": {"prompt": "question"}}}, {"state": JobState.FAILED}],
)  # fmt: skip
def test_an_evaluation_of_another_kind_does_not_count(
    api: TestClient, evaluate: Evaluate, difference: dict[str, Any]
) -> None:
    ok(put(api, OLD))
    ok(put(api, OLD, require=REQUIRE))
    evaluate(NEW, **difference)
    assert "it was not evaluated so" in refused(put(api, NEW))
    evaluate(NEW)
    ok(put(api, NEW))


def test_another_name_of_the_same_weights_has_passed_too(
    api: TestClient, evaluate: Evaluate, publish_model: Publish
) -> None:
    evaluate(NEW)
    publish_model({"name": "ft:tiny:again:3", "base": BASE, "sha256": CONTENT[NEW]})
    ok(put(api, "ft:tiny:again:3", require=REQUIRE))
    told = refused(put(api, BASE))
    assert BASE in told
    evaluate(BASE)
    ok(put(api, BASE))


def test_a_drop_is_measured_against_the_present_targets(api: TestClient, evaluate: Evaluate) -> None:
    ok(put(api, OLD))
    ok(put(api, OLD, require={"evaluation": EVALUATION, "max_drop": 0.05}))
    assert f"--against {OLD} " in refused(put(api, NEW))
    evaluate(NEW, against={BASE: (0.1, 0.05, 0.15)})
    assert f"accuracy was not compared with that of {OLD}" in refused(put(api, NEW))
    evaluate(NEW, against={OLD: (-0.02, -0.08, 0.04)})
    assert "worse than that of ft:tiny:a:1 by 0.02 (-0.04 to 0.08)" in refused(put(api, NEW))
    evaluate(NEW, against={BASE: (0.1, 0.05, 0.15), OLD: (0.01, -0.03, 0.05)})
    ok(put(api, NEW))


def test_what_was_forgotten_is_asked_of_every_suite_that_was_measured(api: TestClient, store: Store) -> None:
    def measure(suite: str, verdict: Verdict) -> str:
        report = report_of(NEW)
        report.why = f"the suite {suite}"
        reason = Reason(name="forgetting", verdict=verdict, message=f"{suite} is below that of {BASE}")
        report.judgement = overall([reason])
        return add_evaluation(store, CONTENT, report, sha256="")

    ok(put(api, OLD))
    require = {"no_forgetting": True}
    assert ok(put(api, OLD, require=require))["require"]["no_forgetting"]
    assert f"tunewright evals create --model {NEW} --suite" in refused(put(api, NEW))
    measure("mmlu", Verdict.PASS)
    measure("gsm8k", Verdict.FAIL)
    assert "gsm8k is below" in refused(put(api, NEW))
    measure("gsm8k", Verdict.NOT_ENOUGH_DATA)
    assert f"{NEW}: fail: gsm8k is below" in refused(put(api, NEW)), "the newest that decides counts"
    measure("gsm8k", Verdict.PASS)
    ok(put(api, NEW))
    reasons = history(api)[0]["gate"]["targets"][0]["reasons"]
    assert sorted((one["name"], one["verdict"]) for one in reasons) == [("forgetting", "pass")] * 2


def test_a_requirement_stays_until_it_is_replaced_and_guards_its_own_removal(
    api: TestClient, evaluate: Evaluate, store: Store
) -> None:
    ok(put(api, OLD, BASE))
    gated = ok(put(api, OLD, BASE, require=REQUIRE))
    assert ok(put(api, OLD))["require"] == gated["require"]
    refused(put(api, NEW, require=None))
    refused(put(api, NEW, require={"evaluation": EVALUATION, "min": 0.1}))
    assert ok(put(api, OLD, require=gated["require"]))["version"] == 3, "as it was shown it can be sent back"
    store.aliases.take_out(BASE)
    rolled = ok(api.post(f"/v1/aliases/{BOT}/rollback", json={"version": 1, "wait": False}))
    assert {target["model"] for target in rolled["targets"]} == {OLD, BASE}, "going back is never refused"
    assert rolled["require"] == gated["require"], "and takes nothing from the gate"
    assert ok(put(api, OLD, require=None))["require"] is None
    assert ok(put(api, NEW))["targets"][0]["model"] == NEW


def test_the_first_targets_are_judged_too_and_a_weight_is_no_new_target(
    api: TestClient, evaluate: Evaluate
) -> None:
    refused(put(api, OLD, require=REQUIRE))
    evaluate(OLD)
    ok(put(api, OLD, require=REQUIRE))
    evaluate(NEW)
    ok(put(api, OLD, NEW))
    evaluate(NEW, (0.2, 0.1, 0.3))
    body = {"targets": [{"model": OLD, "weight": 1}, {"model": NEW, "weight": 9}], "wait": False}
    assert ok(api.put(f"/v1/aliases/{BOT}", json=body))["version"] == 3


def test_a_gate_that_is_set_while_another_flips_is_never_passed_by(api: TestClient) -> None:
    """Both change the alias at once: whichever comes second sees the other's version, and is refused."""
    for _ in range(5):
        api.delete(f"/v1/aliases/{BOT}")
        ok(put(api, OLD))
        flips = [lambda: put(api, OLD, require=REQUIRE), lambda: put(api, NEW)]
        answers = at_once(2, lambda number, flips=flips: flips[number]())  # type: ignore[misc]
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        now = ok(api.get(f"/v1/aliases/{BOT}"))
        assert (now["require"] is None) == (now["targets"][0]["model"] == NEW)


def test_nothing_but_a_judge_changes_a_gated_alias(store: Store, api: TestClient) -> None:
    ok(put(api, OLD))
    ok(put(api, OLD, require=REQUIRE))
    with pytest.raises(ValueError, match="nothing judges"):
        store.aliases.put(BOT, (AliasTarget(NEW),))
    with pytest.raises(Conflict):
        store.aliases.put(BOT, (AliasTarget(NEW),), judge=lambda *_: [_failed(NEW)])


def _failed(model: str) -> Any:
    reason = Reason(name="min", verdict=Verdict.FAIL, message="no")
    return TargetVerdict(model=model, evaluation=None, verdict=Verdict.FAIL, reasons=[reason])


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("require", "status", "param", "words"),
    [
        ({}, 400, "require", "give an `evaluation` with limits"),
        ({"min": 0.5}, 400, "require", "limits need an `evaluation`"),
        ({"evaluation": EVALUATION}, 400, "require", "give `min`, `max` or `max_drop`"),
        ({"evaluation": EVALUATION, "max": 0.5}, 400, "require", "more of accuracy is better"),
        ({"evaluation": EVALUATION, "min": 2}, 400, "require", "accuracy is at most 1"),
        ({"evaluation": {**EVALUATION, "metric": "speed"}, "min": 1}, 400, "require.evaluation.metric", ""),
        ({"evaluation": {**EVALUATION, "metric": "schema_valid"}, "min": 1}, 400, "require", "json_schema"),
        ({"evaluation": {**EVALUATION, "data": "file-no"}, "min": 0.5}, 404, "require.evaluation.data", "No such"),
        ({"evaluation": {**EVALUATION, "sha256": "7" * 64}, "min": 0.5}, 400, "require.evaluation.data", "another"),
        ({"evaluation": EVALUATION, "min": 0.5, "more": 1}, 400, "require.more", "Unknown"),
    ],
)  # fmt: skip
def test_requirements_that_make_no_sense_are_refused(
    api: TestClient, require: dict[str, Any], status: int, param: str, words: str
) -> None:
    answer = put(api, OLD, require=require)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error
