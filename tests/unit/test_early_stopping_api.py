"""Options of evaluations in jobs and plans: what is taken, shown and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from preferences import as_openai, text_rows
from rows import create_job
from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.plan.stopping import BestCheckpoint
from tunewright.store.states import JobState
from tunewright.store.store import Store


def asked(api: TestClient, tuning: dict[str, Any], **more: Any) -> Any:  # noqa: F811
    content = "".join(json.dumps(as_openai(row)) + "\n" for row in text_rows(40)).encode()
    body = {
        "model": BASE,
        "training_file": upload(api, content)["id"],
        "method": {"type": "dpo"},
        "tuning": tuning,
    }
    return api.post("/v1/fine_tuning/jobs", json=body | {"validation_file": "auto"} | more)


def test_they_are_taken_and_shown(api: TestClient) -> None:  # noqa: F811
    answer = asked(
        api, {"early_stopping": {"patience": 3}, "eval_interval": 2, "best_checkpoint": "valid_loss"}
    )
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["tuning"]["early_stopping"] == {"metric": "auto", "patience": 3, "min_delta": 0.0}
    assert (shown["tuning"]["eval_interval"], shown["tuning"]["best_checkpoint"]) == (2, "valid_loss")
    assert shown["best"] is None


@pytest.mark.parametrize(
    ("tuning", "more", "param", "why"),
    [
        ({"early_stopping": {}}, {"validation_file": None}, "tuning.early_stopping", "give a validation_file"),
        ({"best_checkpoint": "valid_loss"}, {"validation_file": None}, "tuning.best_checkpoint", "held out"),
        ({"eval_interval": 3}, {"validation_file": None}, "tuning.eval_interval", "held out"),
        ({"early_stopping": {"metric": "valid_mean_token_accuracy"}}, {}, "tuning.early_stopping.metric",
         "dpo does not measure valid_mean_token_accuracy"),
        ({"best_checkpoint": "valid_reward"}, {}, "tuning.best_checkpoint", "valid_reward_margin"),
        ({"best_checkpoint": "loss"}, {}, "tuning.best_checkpoint", "valid_loss"),
        ({"best_checkpoint": "valid_reward_margin", "early_stopping": {"metric": "valid_loss"}}, {},
         "tuning.early_stopping.metric", "one metric for both"),
        ({"early_stopping": {"patience": 0}}, {}, "tuning.early_stopping.patience", "greater than or equal to 1"),
        ({"early_stopping": {"min_delta": -1}}, {}, "tuning.early_stopping.min_delta", "greater than or equal to 0"),
        ({"early_stopping": {"threshold": 1}}, {}, "tuning.early_stopping.threshold", ""),
        ({"eval_interval": 0}, {}, "tuning.eval_interval", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(
    api: TestClient,  # noqa: F811
    tuning: dict[str, Any],
    more: dict[str, Any],
    param: str,
    why: str,
) -> None:
    answer = asked(api, tuning, **more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]


def test_a_finished_job_shows_which_checkpoint_its_model_is(store: Store) -> None:
    best = BestCheckpoint(metric="valid_loss", step=8, value=1.5, last_step=16, stopped_early=True)
    job = create_job(store, state=JobState.QUEUED)
    shown = JobObject.of(_with_result(job, FineTuningResult(model="ft:x", trained_tokens=1, best=best)))
    assert shown.best is not None
    assert shown.best.model_dump() == best.model_dump()
    assert JobObject.of(job).best is None


def _with_result(job: Any, result: FineTuningResult) -> Any:
    from dataclasses import replace

    return replace(job, result=result)
