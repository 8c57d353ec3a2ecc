"""Jobs and plans on several training files with weights: requests, validation, the trainer's spec, and what is kept."""

# ruff: noqa: F811
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, upload, worker  # noqa: F401 - fixtures

from counted import count_here
from rows import resolved
from tunewright.config import Settings
from tunewright.kinds import FINE_TUNING
from tunewright.kinds.fine_tuning.mixing import mix_of_lineage
from tunewright.kinds.fine_tuning.models import TRAINING_FILE
from tunewright.kinds.kind import JobRefused, Service, Validated
from tunewright.kinds.rows import rows_of_job, sources_of
from tunewright.plan.defaults import Resolved
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import read_rows
from tunewright.rows.held_out import is_held_out
from tunewright.rows.reading import Reading
from tunewright.store.records import Job, Lineage
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingSpec

JOBS = "/v1/fine_tuning/jobs"


def text_rows(count: int, name: str = "a") -> list[dict[str, str]]:
    return [{"prompt": f"{name} {number}", "completion": f"{number + 1}"} for number in range(count)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def files(api: TestClient) -> tuple[str, str, str]:
    """Of 100, 40 and 60 rows."""
    a, b, c = (
        upload(api, lines(text_rows(count, name))) for count, name in ((100, "a"), (40, "b"), (60, "c"))
    )
    return a, b, c


def mixed(api: TestClient, first: str, mix: Any, **more: Any) -> Any:
    data = {"mix": mix, **more.pop("data", {})}
    return api.post(JOBS, json={"model": BASE, "training_file": first, "data": data, "seed": 1, **more})


def created(api: TestClient, store: Store, first: str, mix: Any, **more: Any) -> Job:
    answer = mixed(api, first, mix, **more)
    assert answer.status_code == 200, answer.text
    job = store.jobs.get(answer.json()["id"])
    assert job is not None
    return job


def validated(store: Store, data: Workspace, job: Job) -> Validated:
    service = Service(Settings(data_dir=data.path), store, data, on_gpu=False, devices=("cpu",))
    return FINE_TUNING.validate(service, job, inspect_base(Settings().models.bases[0]))


def test_a_job_has_all_its_files_as_inputs_and_shows_their_weights(
    api: TestClient,
    store: Store,
    files: Any,
) -> None:
    a, b, c = files
    job = created(api, store, a, [{"file": b, "weight": 2}, {"file": a, "weight": 0.5}, {"file": c}])
    assert job.files(TRAINING_FILE) == [a, b, c]
    shown = api.get(f"{JOBS}/{job.id}").json()
    assert shown["training_file"] == a
    weights = {one["file"]: one["weight"] for one in shown["data"]["mix"]}
    assert weights == {b: 2.0, a: 0.5, c: 1.0}
    for id in files:
        assert error(api.delete(f"/v1/files/{id}"), 400)["code"] == "file_in_use"
    api.post(f"{JOBS}/{job.id}/cancel")
    assert api.delete(f"/v1/files/{b}").status_code == 200


@pytest.mark.parametrize(
    ("mix", "param"),
    [
        ([{"file": "file-none"}], "data.mix.0.file"),
        ([{"file": "B", "weight": 0}], "data.mix.0.weight"),
        ([{"file": "B", "weight": True}], "data.mix.0.weight"),
        ([{"file": "B", "weights": 1}], "data.mix.0.weights"),
        ([{"file": "B"}, {"file": "B", "weight": 2}], "data.mix"),
        ([], "data.mix"),
        ([{"file": "BROKEN"}], "data.mix.0.file"),
    ],
)
def test_a_mix_that_cannot_be_is_refused_by_its_field(
    api: TestClient,
    files: Any,
    mix: Any,
    param: str,
) -> None:
    a, b, _ = files
    names = {"B": b, "BROKEN": upload(api, b'{"prompt": "no completion"}\n')}
    asked = [{**one, "file": names.get(one["file"], one["file"])} for one in mix]
    assert error(mixed(api, a, asked), 400)["param"] == param


def test_all_files_are_validated_and_their_different_rows_count(
    api: TestClient,
    store: Store,
    data: Workspace,
    files: Any,
) -> None:
    a, b, c = files
    found = validated(
        store, data, created(api, store, a, [{"file": b, "weight": 10}, {"file": c, "weight": 0.5}])
    )
    for id, weight, rows in ((a, 1, 100), (b, 10, 40), (c, 0.5, 60)):
        assert f"{id} (weight {weight:g}): {rows} rows" in found.summary
    warnings = dict(found.warnings)
    assert "170 rows are few" in warnings["few_rows"], (
        "100, 40 and half of 60: repeated rows are no more data"
    )
    assert isinstance(found.resolved, Resolved)
    assert found.resolved.rank == 8


def test_a_file_that_went_bad_is_refused_by_its_name(
    api: TestClient,
    store: Store,
    data: Workspace,
    files: Any,
) -> None:
    a, b, _ = files
    job = created(api, store, a, [{"file": b}])
    data.file(b).write_bytes(b"{}\n")
    with pytest.raises(JobRefused, match=rf"^{b}: ") as told:
        validated(store, data, job)
    assert (told.value.code, told.value.param) == ("invalid_training_file", "data.mix")


def test_rows_that_files_share_are_told(api: TestClient, store: Store, data: Workspace) -> None:
    rows = text_rows(50)
    a, b = upload(api, lines(rows[:40])), upload(api, lines(rows[30:]))
    validation = upload(api, lines([*rows[:3], *text_rows(4, "new")]))
    found = dict(
        validated(store, data, created(api, store, a, [{"file": b}], validation_file=validation)).warnings
    )
    assert f"10 rows of {b} are in {a} too" in found["duplicate_rows"]
    assert f"3 rows of the validation file are in {a} too" in found["leaked_rows"]
    apart = upload(api, lines(text_rows(9, "other")))
    assert not {"duplicate_rows", "leaked_rows"} & {
        code for code, _ in validated(store, data, created(api, store, a, [{"file": apart}])).warnings
    }


def test_rows_of_evaluations_that_are_trained_on_are_told(
    api: TestClient, store: Store, data: Workspace
) -> None:
    """Of any number of training files."""
    first, *others = (upload(api, lines(text_rows(9, name))) for name in "abcdef")
    rows = upload(api, lines([*text_rows(2, "f"), *text_rows(4, "new")]))
    wanted = {"evaluate": {"data": rows, "at": ["end"]}}
    job = created(api, store, first, [{"file": id} for id in others], validation_file=rows, **wanted)
    warnings = [text for code, text in validated(store, data, job).warnings if code == "leaked_rows"]
    assert [text.split(" are in ")[0] for text in warnings] == [
        "2 rows of the validation file", "2 rows of evaluate.data",
    ]  # fmt: skip
    assert all(f"are in {others[-1]} too" in text for text in warnings)
    alone = api.post(
        JOBS, json={"model": BASE, "training_file": rows, "evaluate": {"data": rows, "at": ["end"]}}
    )
    job = store.jobs.get(alone.json()["id"])
    assert job is not None
    assert "6 rows of evaluate.data" in dict(validated(store, data, job).warnings)["leaked_rows"]


def test_held_out_rows_are_of_all_files_and_never_copies_of_training_rows(
    api: TestClient,
    store: Store,
    data: Workspace,
) -> None:
    rows = text_rows(200)
    a, b = upload(api, lines(rows[:150])), upload(api, lines(rows[100:]))
    job = created(api, store, a, [{"file": b}], validation_file="auto", data={"validation_share": 0.2})
    spec = spec_of(store, data, job)
    assert spec.validation_file == spec.training_file
    paths = [Path(spec.training_file), Path(spec.further_files[0].file)]
    training, held_out = (
        {json.dumps(row) for path in paths for _, row in read_rows(path, reading)}
        for reading in (spec.reading, spec.validation_reading)
    )
    assert not training & held_out
    assert len(training) + len(held_out) == 200
    assert validated(store, data, job).summary.count("held out") == 2


def test_a_file_that_would_be_held_out_whole_is_refused(
    api: TestClient, store: Store, data: Workspace
) -> None:
    row = next(row for row in text_rows(99, "one") if is_held_out(row, 0.5))
    a, b = upload(api, lines(text_rows(100))), upload(api, lines([row]))
    job = created(api, store, a, [{"file": b}], validation_file="auto", data={"validation_share": 0.5})
    with pytest.raises(JobRefused, match=rf"of the 1 rows of {b} all would be held out") as told:
        validated(store, data, job)
    assert told.value.param == "data.mix"


def spec_of(store: Store, data: Workspace, job: Job) -> TrainingSpec:
    store.jobs.mark_valid(job.id, resolved().model_dump(mode="json"), "valid")
    claimed = store.jobs.claim("cpu", [BASE])
    assert claimed is not None
    service = Service(Settings(data_dir=data.path), store, data, on_gpu=False)
    spec = FINE_TUNING.spec(service, claimed, inspect_base(Settings().models.bases[0]))
    assert isinstance(spec, TrainingSpec)
    return spec


def test_the_trainer_gets_each_file_with_its_hash_and_weight(
    api: TestClient,
    store: Store,
    data: Workspace,
    files: Any,
) -> None:
    a, b, c = files
    spec = spec_of(
        store,
        data,
        created(api, store, a, [{"file": b, "weight": 2}, {"file": a, "weight": 0.5}, {"file": c}]),
    )
    hashes = {id: record.sha256 for id in files if (record := store.files.get(id))}
    assert (spec.training_file, spec.training_sha256, spec.weight) == (str(data.file(a)), hashes[a], 0.5)
    assert [(one.file, one.sha256, one.weight) for one in spec.further_files] == [
        (str(data.file(b)), hashes[b], 2.0),
        (str(data.file(c)), hashes[c], 1.0),
    ]
    assert TrainingSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_lineage_has_every_file(api: TestClient, store: Store, files: Any) -> None:
    a, b, _ = files
    hashes = {id: record.sha256 for id in files if (record := store.files.get(id))}
    assert mix_of_lineage(store, {a: 1.0}, [100]) is None
    assert mix_of_lineage(store, {a: 1.0, b: 0.5, "file-gone": 2.0}, [100, 20, 8]) == [
        {"file": a, "sha256": hashes[a], "weight": 1.0, "examples": 100},
        {"file": b, "sha256": hashes[b], "weight": 0.5, "examples": 20},
        {"file": "file-gone", "sha256": None, "weight": 2.0, "examples": 8},
    ]


def test_rows_of_a_job_are_of_all_its_files_in_their_shares(
    api: TestClient, store: Store, data: Workspace, files: Any
) -> None:
    a, b, _ = files
    mix = [{"file": a, "weight": 0.5}, {"file": b, "weight": 2}]
    lineage = Lineage(
        mix=[{"file": a, "weight": 0.5, "examples": 50}, {"file": b, "weight": 2.0, "examples": 80}]
    )
    plain = created(api, store, a, mix)
    assert rows_of_job(plain, lineage).training == {a: 50, b: 80}
    assert rows_of_job(plain, lineage).held_out == {}
    assert rows_of_job(plain, None).training == {a: 0.5, b: 2.0}, "a model of an earlier version"
    held_out = created(api, store, a, mix, validation_file="auto")
    assert rows_of_job(held_out, lineage).held_out == {a: 100, b: 40}, "each row once, whatever the weights"
    given = upload(api, lines(text_rows(3, "v")))
    assert rows_of_job(created(api, store, a, mix, validation_file=given), lineage).held_out == {given: 1.0}
    reading = Reading(part="training", held_out_share=0.05)
    found = sources_of({a: 50, "file-gone": 1.0, b: 80}, data, reading, lambda _: True)
    assert [(one.id, one.share, one.reading) for one in found] == [(a, 50, reading), (b, 80, reading)]


def test_a_plan_counts_an_epoch_of_all_files(
    api: TestClient, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_here(monkeypatch)
    a, b, c = files

    def plan(first: str, mix: Any = None) -> Any:
        body = {
            "model": BASE,
            "training_file": first,
            "machine": "L4",
            "tuning": {"n_epochs": 2, "batch_size": 32},
        }
        answer = api.post("/v1/fine_tuning/plan", json=body | ({"data": {"mix": mix}} if mix else {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    alone = {id: plan(id)["tokens"] for id in files}
    made = plan(a, [{"file": b, "weight": 2}, {"file": c, "weight": 0.5}])
    assert made["tokens"] == pytest.approx(alone[a] + 2 * alone[b] + alone[c] / 2, abs=1)
    assert made["steps"] == 2 * 7, "210 examples an epoch"
    assert made["rows"] == 100 + 40 + 30
    assert [(one["file"], one["weight"], one["rows"]) for one in made["files"]] == [
        (a, 1.0, 100),
        (b, 2.0, 80),
        (c, 0.5, 30),
    ]
    assert sum(one["tokens"] for one in made["files"]) == pytest.approx(made["tokens"], abs=2)
    assert [(one["file"], one["rows"]) for one in plan(a)["files"]] == [(a, 100)]
