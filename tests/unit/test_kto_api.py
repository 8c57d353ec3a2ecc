"""Jobs and plans of the method kto: what is taken, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from counted import count_here
from preferences import labelled_chat, labelled_messages, labelled_rows, write
from rows import create_job
from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.plan.defaults import resolve
from tunewright.plan.fitting import with_less_memory
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.pitfalls import labels_unbalanced
from tunewright.rows.probes import rows_or_probes
from tunewright.rows.sources import Source
from tunewright.store.states import JobState
from tunewright.store.store import Store

FORMS = {
    "text": labelled_rows(8),
    "messages": [labelled_messages(row) for row in labelled_rows(8)],
    "chat": [labelled_chat(row) for row in labelled_rows(8)],
}


def asked(api: TestClient, form: str = "text", **more: Any) -> Any:  # noqa: F811
    content = "".join(json.dumps(row) + "\n" for row in FORMS[form]).encode()
    body = {"model": BASE, "training_file": upload(api, content)["id"], "method": {"type": "kto"}, **more}
    return api.post("/v1/fine_tuning/jobs", json=body)


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_a_label_are_taken_in_every_form(api: TestClient, form: str) -> None:  # noqa: F811
    method = {"type": "kto", "kto": {"hyperparameters": {"beta": 0.25}}}
    answer = asked(api, form, method=method, tuning={"desirable_weight": 2})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["method"]["kto"]["hyperparameters"]["beta"] == 0.25
    assert made["method"]["dpo"] is None
    assert made["tuning"]["desirable_weight"] == 2
    assert "loss_type" not in made["tuning"]


def test_a_validated_job_shows_what_auto_became(store: Store) -> None:
    resolved = resolve(
        tuning=TuningOptions(), hyperparameters=HyperparameterOptions(), rows=64, context=1024, max_rank=64,
        device="cpu", method="kto",
    )  # fmt: skip
    job = create_job(store, request={"method": "kto"}, state=JobState.QUEUED, resolved=resolved)

    shown = JobObject.of(job).model_dump(mode="json")

    assert shown["method"]["kto"]["hyperparameters"]["beta"] == 0.1
    assert (shown["tuning"]["learning_rate"], shown["tuning"]["per_device_batch_size"]) == (5e-6, 8)
    assert (shown["tuning"]["desirable_weight"], shown["tuning"]["undesirable_weight"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"method": {"type": "kto", "kto": {"hyperparameters": {"beta": 0}}}}, "method.kto.hyperparameters.beta",
         "greater than 0"),
        ({"method": {"type": "kto", "dpo": {}}}, "method.dpo", "leave"),
        ({"tuning": {"loss_type": "ipo"}}, "tuning.loss_type", "for the method dpo; the method is kto"),
        ({"tuning": {"neftune_alpha": 5}}, "tuning.neftune_alpha", "for the method supervised; the method is kto"),
        ({"tuning": {"desirable_weight": 0}}, "tuning.desirable_weight", "greater than 0"),
        ({"tuning": {"dropout": 0.1}}, "tuning.dropout", "kto trains without dropout"),
        ({"tuning": {"per_device_batch_size": 1}}, "tuning.per_device_batch_size", "2 or more"),
        ({"tuning": {"batch_size": 1}}, "tuning.batch_size", "2 or more"),
        ({"tuning": {"gpus": 2}}, "tuning.gpus", "kto trains on one GPU"),
        ({"method": {"type": "kto", "kto": {"hyperparameters": {"batch_size": 1}}}},
         "method.kto.hyperparameters.batch_size", "2 or more"),
        ({"method": {"type": "supervised"}, "tuning": {"undesirable_weight": 2}}, "training_file", "kto could"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_name(
    api: TestClient,  # noqa: F811
    change: dict[str, Any],
    param: str,
    told: str,
) -> None:
    refused = error(asked(api, **change), 400)
    assert refused["param"] == param
    assert told in refused["message"]


def test_weights_of_files_are_refused_where_the_reference_is_computed_once(api: TestClient) -> None:  # noqa: F811
    other = upload(api, "".join(json.dumps(row) + "\n" for row in labelled_rows(8, 50)).encode())["id"]
    mix = {"mix": [{"file": other, "weight": 2.0}]}
    refused = error(asked(api, data=mix, tuning={"type": "full"}), 400)
    assert (refused["param"], "weights of data.mix at 1" in refused["message"]) == ("data.mix", True)
    assert asked(api, data=mix).status_code == 200, (
        "an adapter is compared with the model without it, at each step"
    )


def test_a_plan_of_kto_is_made(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    count_here(monkeypatch)
    file = upload(api, "".join(json.dumps(row) + "\n" for row in FORMS["text"]).encode())["id"]
    body = {"model": BASE, "training_file": file, "machine": "H100", "method": {"type": "kto"}}
    plan = api.post("/v1/fine_tuning/plan", json=body)
    assert plan.status_code == 200, plan.text
    values = {option["name"]: option["value"] for option in plan.json()["options"]}
    assert (values["learning_rate"], values["beta"], values["per_device_batch_size"]) == (5e-6, 0.1, 4)


def test_a_job_that_ran_out_of_memory_keeps_two_rows_at_a_time() -> None:
    resolved = resolve(
        tuning=TuningOptions(per_device_batch_size=4, batch_size=12), hyperparameters=HyperparameterOptions(), rows=64,
        context=1024, max_rank=64, device="cuda", method="kto",
    )  # fmt: skip
    less = with_less_memory(resolved)
    assert less is not None
    assert (less.per_device_batch_size, less.gradient_accumulation_steps) == (2, 6)
    assert with_less_memory(less) is None


@pytest.mark.parametrize(
    ("good", "bad", "weights", "told"),
    [
        (10, 10, (1.0, 1.0), None),
        (13, 10, (1.0, 1.0), None),
        (10, 40, (4.0, 1.0), None),
        (10, 40, (1.0, 1.0), "Set tuning.desirable_weight 4,"),
        (30, 10, (1.0, 1.0), "Set tuning.undesirable_weight 3,"),
        (30, 10, (2.0, 1.0), "Set tuning.undesirable_weight 6,"),
        (10, 0, (1.0, 1.0), "all 10 answers are good"),
    ],
)
def test_labels_that_count_unequally_are_told_with_the_weight_that_balances_them(
    good: int, bad: int, weights: tuple[float, float], told: str | None
) -> None:
    message = labels_unbalanced(good, bad, *weights)
    assert message is None if told is None else told in str(message)


def test_rows_to_measure_on_are_those_with_good_answers(tmp_path: Path) -> None:
    rows = labelled_rows(4)
    path = write(tmp_path / "rows.jsonl", rows)
    assert list(rows_or_probes([Source(file=str(path))], as_chat=False)) == [
        ("rows.jsonl", line, {"prompt": row["prompt"], "completion": row["completion"]})
        for line, row in enumerate(rows, 1)
        if row["label"]
    ]
