"""Jobs and plans of the method dpo: what is taken, shown and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from counted import count_here
from preferences import as_messages, as_openai, text_rows
from rows import PRODUCT, create_job
from tests.conftest import Publish
from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.store.states import JobState, ModelState
from tunewright.store.store import Store

FORMS = {
    "openai": [as_openai(row) for row in text_rows(8)],
    "messages": [as_messages(row) for row in text_rows(8)],
    "text": list(text_rows(8)),
}


def asked(api: TestClient, form: str = "openai", **more: Any) -> Any:  # noqa: F811
    content = "".join(json.dumps(row) + "\n" for row in FORMS[form]).encode()
    body = {"model": BASE, "training_file": upload(api, content)["id"], "method": {"type": "dpo"}, **more}
    return api.post("/v1/fine_tuning/jobs", json=body)


@pytest.mark.parametrize("form", FORMS)
def test_preferences_in_every_form_are_taken(api: TestClient, form: str) -> None:  # noqa: F811
    answer = asked(api, form, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.25}}})
    assert answer.status_code == 200, answer.text
    job = FineTuningJob.model_validate(answer.json())
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.25)
    assert "beta" not in answer.json()["hyperparameters"]


def test_a_method_as_the_openai_client_dumps_it_is_taken(api: TestClient) -> None:  # noqa: F811
    method = {
        "type": "dpo",
        "dpo": {"hyperparameters": {"beta": "auto"}},
        "supervised": None,
        "reinforcement": None,
    }
    assert asked(api, method=method).json()["method"]["dpo"]["hyperparameters"]["beta"] == "auto"


def test_the_older_place_of_hyperparameters_counts_for_dpo_too(api: TestClient) -> None:  # noqa: F811
    job = asked(api, hyperparameters={"n_epochs": 4}).json()
    assert job["method"]["dpo"]["hyperparameters"]["n_epochs"] == 4
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 5}}}
    refused = error(asked(api, hyperparameters={"n_epochs": 4}, method=method), 400)
    assert "`method.dpo.hyperparameters` disagree" in refused["message"]


def test_a_validated_job_shows_what_auto_became(store: Store) -> None:
    resolved = resolve(
        tuning=TuningOptions(loss_type="robust"), hyperparameters=HyperparameterOptions(), rows=64, context=1024,
        max_rank=64, device="cpu", method="dpo",
    )  # fmt: skip
    job = create_job(store, request={"method": "dpo"}, state=JobState.QUEUED, resolved=resolved)

    shown = JobObject.of(job).model_dump(mode="json")

    assert shown["method"] == {
        "type": "dpo",
        **dict.fromkeys(["supervised", "kto", "orpo", "reward", "reinforcement"]),
        "dpo": {
            "hyperparameters": {
                "n_epochs": 3, "batch_size": 32, "learning_rate_multiplier": "auto", "beta": 0.1,
            }
        },
    }  # fmt: skip
    assert (shown["tuning"]["learning_rate"], shown["tuning"]["per_device_batch_size"]) == (5e-6, 4)
    assert (shown["tuning"]["loss_type"], shown["tuning"]["label_smoothing"]) == ("robust", 0.1)


def test_a_supervised_job_has_no_options_of_dpo(store: Store) -> None:
    shown = JobObject.of(create_job(store)).model_dump(mode="json")
    assert not {"loss_type", "label_smoothing", "beta", "method"} & shown["tuning"].keys()
    assert shown["method"]["dpo"] is None


def test_orpo_takes_the_same_rows_and_has_no_options_of_dpo(api: TestClient) -> None:  # noqa: F811
    method = {"type": "orpo", "orpo": {"hyperparameters": {"beta": 0.2}}}
    answer = asked(api, method=method, tuning={"dropout": 0.1})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["method"]["type"], made["method"]["orpo"]["hyperparameters"]["beta"]) == ("orpo", 0.2)
    assert made["tuning"]["dropout"] == 0.1, "there is no reference to differ from"
    assert "loss_type" not in made["tuning"]
    refused = error(asked(api, method=method, tuning={"loss_type": "ipo"}), 400)
    assert "tuning.loss_type is for the method dpo; the method is orpo" in refused["message"]


REWARD = {"type": "reward", "reward": {"hyperparameters": {"n_epochs": 2}}}


def test_reward_takes_the_same_rows_and_its_product_is_neither_trained_on_nor_served(
    api: TestClient,  # noqa: F811
    store: Store,
    publish_model: Publish,
) -> None:
    answer = asked(api, method=REWARD, tuning={"dropout": 0.1})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["method"]["reward"]["hyperparameters"] == {
        "n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto",
    }  # fmt: skip
    store.engines.declare([BASE])
    common = {**PRODUCT, "base": BASE, "state": ModelState.READY}
    publish_model({**common, "name": "an-adapter", "sha256": "a" * 64})
    whole = {"kind": "full", "rank": None, "alpha": None, "target_modules": None, "desired": "unloaded"}
    publish_model({**common, **whole, "name": "a-reward-model", "sha256": "b" * 64, "method": "reward"})

    beta = {"type": "reward", "reward": {"hyperparameters": {"beta": 0.1}}}
    following = [{"training_file": made["training_file"]}]
    first = {"method": None, "steps": [{"training_file": made["training_file"], "method": REWARD}]}
    for change, param, told in (
        ({"method": beta}, "method.reward.hyperparameters.beta", ""),
        ({"method": REWARD, "tuning": {"loss_type": "ipo"}}, "tuning.loss_type", "for the method dpo"),
        ({"method": REWARD, "tuning": {"init": "pissa"}}, "tuning.init", "a head beside the adapter"),
        ({"method": REWARD, "model": "an-adapter"}, "model", "begins with a base or a whole model"),
        ({"method": REWARD, "model": "a-reward-model"}, "model", "no job goes on from it"),
        ({"method": REWARD, "evaluate": {"data": made["training_file"]}}, "evaluate", "answers nothing"),
        ({"method": REWARD, "steps": following}, "steps.0.method", "make it the last"),
    ):
        refused = error(asked(api, **change), 400)
        assert refused["param"] == param
        assert told in refused["message"]
    sft = upload(api, json.dumps({"prompt": "a", "completion": "b"}).encode() + b"\n")["id"]
    body = {"model": BASE, "training_file": sft, **first}
    refused = error(api.post("/v1/fine_tuning/jobs", json=body), 400)
    assert (refused["param"], "use tuning.type full" in refused["message"]) == ("steps.0.method", True)
    refused = error(api.post("/v1/deployments", json={"model": "a-reward-model"}), 400)
    assert refused["code"] == "not_deployable"
    refused = error(api.post("/v1/exports", json={"model": "a-reward-model", "format": "awq"}), 400)
    assert "reward model" in refused["message"]
    judge = {
        "type": "score_model",
        "name": "j",
        "model": "a-reward-model",
        "input": [{"role": "user", "content": "x"}],
    }
    rows = json.dumps({"messages": [{"role": "user", "content": "a"}], "b": 1}).encode() + b"\n"
    method = {"type": "reinforcement", "reinforcement": {"grader": judge}}
    body = {"model": BASE, "training_file": upload(api, rows)["id"], "method": method}
    refused = error(api.post("/v1/fine_tuning/jobs", json=body), 400)
    assert refused["param"] == "method.reinforcement.grader.model"


@pytest.mark.parametrize(
    ("change", "param", "code", "told"),
    [
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}}, "method.dpo.hyperparameters.beta",
         "invalid_value", "greater than 0"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "0.1"}}}}, "method.dpo.hyperparameters.beta",
         "invalid_value", ""),
        ({"method": {"type": "dpo", "dpo": {"beta": 0.1}}}, "method.dpo.beta", "unknown_parameter", ""),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "invalid_value", "leave"),
        ({"tuning": {"loss_type": "aot"}}, "tuning.loss_type", "invalid_value", "sigmoid"),
        ({"tuning": {"label_smoothing": 0.1}}, "tuning.label_smoothing", "invalid_value", "robust and exo_pair"),
        ({"tuning": {"loss_type": "robust", "label_smoothing": 0.5}}, "tuning.label_smoothing", "invalid_value",
         "less than 0.5"),
        ({"tuning": {"dropout": 0.1}}, "tuning.dropout", "invalid_value", "without dropout"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_name(
    api: TestClient,  # noqa: F811
    change: dict[str, Any],
    param: str,
    code: str,
    told: str,
) -> None:
    refused = error(asked(api, **change), 400)
    assert (refused["param"], refused["code"]) == (param, code)
    assert told in refused["message"]


def test_a_plan_of_dpo_counts_both_answers_and_the_reference(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_here(monkeypatch)
    file = upload(api, "".join(json.dumps(row) + "\n" for row in FORMS["text"]).encode())["id"]
    body = {"model": BASE, "training_file": file, "machine": "H100"}
    plan = api.post("/v1/fine_tuning/plan", json={**body, "method": {"type": "dpo"}})
    assert plan.status_code == 200, plan.text
    made = plan.json()

    values = {option["name"]: option["value"] for option in made["options"]}
    assert (values["learning_rate"], values["n_epochs"], values["beta"]) == (5e-6, 3, 0.1)
    assert (values["per_device_batch_size"], values["batch_size"]) == (2, 8)
    assert (made["rows"], made["steps"]) == (8, 3)
    refused = error(api.post("/v1/fine_tuning/plan", json=body), 400)
    assert "dpo, orpo or reward could" in refused["message"]
