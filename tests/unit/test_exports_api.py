"""Exports over HTTP: what is accepted, what is refused before anything runs, and what is shown of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lora import random_lora, tampered
from rows import FILE, PRODUCT, create_job, engine_info
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.kinds import EXPORT
from tunewright.kinds.kind import Service
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.store.states import EngineState, JobState, ModelState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

BASE = "tunewright-tiny"
FINGERPRINT = "f" * 64
PIRATE = "ft:tunewright-tiny:pirate:11111111"
Register = Callable[..., str]


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def make(built: dict[str, Any], store: Store, data: Workspace) -> Callable[..., TestClient]:
    def client(base: Path | None = None, **options: Any) -> TestClient:
        settings = Settings(data_dir=data.path, base=[f"{BASE}={base or embedded_base_path()}"], **options)
        store.engines.declare([BASE])
        info = engine_info(fingerprint=FINGERPRINT, path=base or embedded_base_path(), max_model_len=64)
        store.engines.starting(BASE, "/tmp/s", info)
        store.engines.set_state(BASE, EngineState.READY)
        if not built:
            built["server"], _ = build(settings, store)
        built["server"].app.state.context = ServiceContext(settings, store, data, _control)
        return TestClient(
            built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
        )

    return client


@pytest.fixture
def api(make: Callable[..., TestClient]) -> TestClient:
    return make()


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(embedded_base_path(), tmp_path_factory.mktemp("lora") / "a", strength=0.1, seed=1)


@pytest.fixture
def register(store: Store, data: Workspace, lora: Path) -> Register:
    """Lists an adapter (or another model), whose files are `folder`, as if it had been made here."""

    def listed(name: str = PIRATE, folder: Path | None = None, **values: Any) -> str:
        folder = folder or lora
        sha256 = data.artifacts.put(folder)
        row = {"id": f"adapter-{name}", "name": name, "base": BASE, "sha256": sha256, "source": "job"}
        store.models.register({**PRODUCT, **row, "base_fingerprint": FINGERPRINT, **values})
        return name

    return listed


@pytest.fixture
def pirate(register: Register) -> str:
    return register()


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_an_export_is_a_job_of_its_own(api: TestClient, pirate: str, store: Store) -> None:
    answer = api.post("/v1/exports", json={"model": pirate, "format": "merged", "metadata": {"team": "a"}})
    assert answer.status_code == 200, answer.text
    export = answer.json()
    assert export["id"].startswith("export-")
    assert export["object"] == "export"
    assert (export["status"], export["model"], export["base"]) == ("validating_files", pirate, BASE)
    assert export["models"] == [{"model": pirate, "weight": 1.0}]
    assert export["suffix"] == "pirate-merged"
    assert export["max_kl"] is None
    assert api.get(f"/v1/exports/{export['id']}").json() == export
    assert [e["id"] for e in api.get("/v1/exports").json()["data"]] == [export["id"]]
    assert api.get("/v1/exports", params={"metadata[team]": "b"}).json()["data"] == []
    assert api.get("/v1/fine_tuning/jobs").json()["data"] == []
    refused = error(api.get(f"/v1/fine_tuning/jobs/{export['id']}"), 404)
    assert refused["code"] == "fine_tuning_job_not_found"
    events = api.get(f"/v1/exports/{export['id']}/events").json()["data"]
    assert [event["message"] for event in events] == [f"Created export: {export['id']}"]


def test_fine_tuning_jobs_are_no_exports(api: TestClient, store: Store) -> None:
    job = create_job(store, model=BASE, base=BASE)
    assert error(api.get(f"/v1/exports/{job.id}"), 404)["code"] == "export_not_found"
    assert api.get("/v1/exports").json()["data"] == []
    for action in ("cancel", "pause", "resume"):
        assert error(api.post(f"/v1/exports/{job.id}/{action}"), 404)["code"] == "export_not_found"


def test_the_same_request_makes_one_export(api: TestClient, pirate: str) -> None:
    body = {"model": pirate, "format": "merged"}
    first = api.post("/v1/exports", json=body, headers={"Idempotency-Key": "k"}).json()
    assert api.post("/v1/exports", json=body, headers={"Idempotency-Key": "k"}).json() == first
    other = api.post("/v1/exports", json={**body, "seed": 3}, headers={"Idempotency-Key": "k"})
    assert error(other)["code"] == "idempotency_key_reused"


def test_cancelling_keeps_the_adapter_and_frees_it(api: TestClient, pirate: str, store: Store) -> None:
    export = api.post("/v1/exports", json={"model": pirate, "format": "merged"}).json()
    in_use = error(api.delete(f"/v1/models/{pirate}"))
    assert in_use["code"] == "model_in_use"
    assert export["id"] in in_use["message"]
    assert api.post(f"/v1/exports/{export['id']}/cancel").json()["status"] == "cancelled"
    assert error(api.post(f"/v1/exports/{export['id']}/cancel"))["code"] == "job_not_cancellable"
    assert api.delete(f"/v1/models/{pirate}").status_code == 200


def test_every_adapter_of_a_combination_is_kept(
    api: TestClient, pirate: str, register: Register, tmp_path: Path
) -> None:
    other = register(
        "ft:tunewright-tiny:formal:22222222",
        random_lora(embedded_base_path(), tmp_path / "b", strength=0.1, seed=2),
    )
    body = {"models": [{"model": pirate}, {"model": other, "weight": 0.5}], "format": "adapter"}
    export = api.post("/v1/exports", json=body).json()
    assert export["combine"] == {"method": "linear", "density": 0.5, "rank": None}
    for model in (pirate, other):
        assert error(api.delete(f"/v1/models/{model}"))["code"] == "model_in_use"
    api.post(f"/v1/exports/{export['id']}/cancel")
    assert api.delete(f"/v1/models/{other}").status_code == 200


def test_its_data_is_that_of_the_job(
    api: TestClient, register: Register, store: Store, data: Workspace
) -> None:
    job = create_job(store, base=BASE, model=BASE, state=JobState.RUNNING)
    trained = register(job_id=job.id)
    export = api.post("/v1/exports", json={"model": trained, "format": "awq"}).json()
    assert export["calibration_file"] == FILE["id"]
    assert export["validation_file"] == FILE["id"]
    assert "rows that were trained on" in export["notes"][0]
    assert (export["calibration_rows"], export["group_size"]) == (128, 128)
    merged = api.post("/v1/exports", json={"model": trained, "format": "merged"}).json()
    assert merged["calibration_file"] is None
    assert merged["group_size"] is None
    assert error(api.delete(f"/v1/files/{FILE['id']}"))["code"] == "file_in_use"


def test_rows_of_a_job_on_several_files_are_of_all_of_them(
    api: TestClient, register: Register, store: Store, data: Workspace
) -> None:
    other = "file-other"
    store.files.add(**{**FILE, "id": other, "sha256": "2" * 64})
    for id in (FILE["id"], other):
        data.file(id).write_text("{}\n")
    asked = {"data": {"mix": [{"file": other, "weight": 2.0}]}}
    job = create_job(
        store, base=BASE, model=BASE, state=JobState.RUNNING, request=asked, further_files=[other]
    )
    mix = [
        {"file": FILE["id"], "weight": 1.0, "examples": 30},
        {"file": other, "weight": 2.0, "examples": 10},
    ]
    trained = register(job_id=job.id, lineage={"mix": mix})
    made = api.post("/v1/exports", json={"model": trained, "format": "awq"}).json()
    export = store.jobs.get(made["id"])
    assert export is not None
    assert export.files("calibration_file") == export.files("validation_file") == [FILE["id"], other]
    assert error(api.delete(f"/v1/files/{other}"))["code"] == "file_in_use"
    service = Service(Settings(data_dir=data.path), store, data, on_gpu=False, devices=("cpu",))
    base = inspect_base(Settings().models.bases[0])
    spec = EXPORT.spec(service, replace(export, devices=("cpu",)), base)
    assert spec.calibration is not None
    for files in (spec.rows.files, spec.calibration.files):
        assert [(one.id, one.share) for one in files] == [(FILE["id"], 30.0), (other, 10.0)]


def test_awq_needs_text(api: TestClient, pirate: str) -> None:
    refused = error(api.post("/v1/exports", json={"model": pirate, "format": "awq"}))
    assert (refused["param"], refused["code"]) == ("calibration_file", "missing_parameter")
    answer = api.post("/v1/exports", json={"model": pirate, "format": "awq", "calibration_file": FILE["id"]})
    assert answer.json()["calibration_file"] == FILE["id"]
    missing = {"model": pirate, "format": "awq", "calibration_file": "file-none"}
    assert error(api.post("/v1/exports", json=missing))["param"] == "calibration_file"


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"format": "merged"}, "give `model`"),
        (
            {"model": PIRATE, "models": [{"model": PIRATE}, {"model": "b"}], "format": "merged"},
            "give `model`",
        ),
        ({"model": PIRATE, "format": "gguf"}, "format"),
        ({"model": PIRATE, "format": "adapter"}, "one of several"),
        ({"models": [{"model": PIRATE}], "format": "adapter"}, "at least 2"),
        ({"models": [{"model": PIRATE}, {"model": PIRATE}], "format": "adapter"}, "there twice"),
        ({"model": PIRATE, "format": "merged", "combine": {"method": "ties"}}, "several adapters"),
        ({"model": PIRATE, "format": "awq", "group_size": 100}, "group_size"),
        ({"model": PIRATE, "format": "merged", "max_kl": 0}, "max_kl"),
        ({"model": PIRATE, "format": "merged", "max_kl": float("1e400")}, "max_kl"),
        ({"model": PIRATE, "format": "merged", "suffix": "a b"}, "suffix"),
        (
            {
                "models": [{"model": PIRATE, "weight": 2.0}, {"model": "b"}],
                "format": "adapter",
                "combine": {"method": "soup"},
            },
            "a soup is the mean",
        ),
        (
            {"models": [{"model": PIRATE}, {"model": "b"}], "format": "adapter", "max_kl": 1.0},
            "for merged and awq",
        ),
        ({"model": PIRATE, "format": "merged", "quantize": True}, "quantize"),
    ],
)
def test_what_makes_no_sense_is_refused(
    api: TestClient, pirate: str, body: dict[str, Any], words: str
) -> None:
    text = json.dumps(body).replace("Infinity", "1e400")
    refused = error(api.post("/v1/exports", content=text, headers={"Content-Type": "application/json"}))
    assert words in refused["message"] or words in str(refused["param"])


def test_what_there_is_nothing_to_merge_of(api: TestClient, register: Register, data: Workspace) -> None:
    full = register("ft:tunewright-tiny:all:33333333", embedded_base_path(), kind="full", method="full")
    for model in (full, BASE):
        refused = error(api.post("/v1/exports", json={"model": model, "format": "merged"}))
        assert refused["code"] == "nothing_to_merge"
        assert "nothing to merge" in refused["message"]
    awq = {"format": "awq", "calibration_file": FILE["id"]}
    assert api.post("/v1/exports", json={"model": full, **awq}).status_code == 200
    assert api.post("/v1/exports", json={"model": BASE, **awq}).status_code == 200
    quantized = register("ft:tunewright-tiny:q:44444444", embedded_base_path(), kind="full", method="awq")
    assert error(api.post("/v1/exports", json={"model": quantized, **awq}))["code"] == "already_quantized"
    refused = error(
        api.post("/v1/exports", json={"models": [{"model": full}, {"model": BASE}], "format": "adapter"})
    )
    assert refused["code"] == "not_an_adapter"


def test_unknown_models_and_aliases(api: TestClient, pirate: str, store: Store) -> None:
    assert error(api.post("/v1/exports", json={"model": "ft:x", "format": "merged"}), 404)["code"] == (
        "model_not_found"
    )
    answer = api.put("/v1/aliases/bot", json={"targets": [{"model": BASE}]})
    assert answer.status_code == 200, answer.text
    assert "alias" in error(api.post("/v1/exports", json={"model": "bot", "format": "merged"}))["message"]


def test_an_adapter_of_another_base_of_that_name(api: TestClient, register: Register) -> None:
    stale = register(base_fingerprint="0" * 64)
    assert error(api.post("/v1/exports", json={"model": stale, "format": "merged"}))["code"] == "base_changed"


def test_states_of_adapters(api: TestClient, register: Register) -> None:
    checking = register("ft:tunewright-tiny:c:55555555", state=ModelState.CHECKING)
    refused = error(api.post("/v1/exports", json={"model": checking, "format": "merged"}))
    assert refused["code"] == "model_not_ready"
    quarantined = register("ft:tunewright-tiny:q:66666666", state=ModelState.QUARANTINED)
    export = api.post("/v1/exports", json={"model": quarantined, "format": "merged"}).json()
    assert "quarantined" in export["notes"][0]


def test_dora_is_merged_and_not_combined(
    api: TestClient, register: Register, pirate: str, lora: Path, tmp_path: Path
) -> None:
    dora = register("ft:tunewright-tiny:d:77777777", _as_dora(lora, tmp_path / "dora"), state="merge_only")
    export = api.post("/v1/exports", json={"model": dora, "format": "merged"}).json()
    assert any("served only when merged" in note and "DoRA" in note for note in export["notes"])
    refused = error(
        api.post("/v1/exports", json={"models": [{"model": pirate}, {"model": dora}], "format": "adapter"})
    )
    assert refused["code"] == "export_unsupported"
    assert dora in refused["message"]


def test_rank_above_the_engines(api: TestClient, pirate: str, register: Register, tmp_path: Path) -> None:
    other = register(
        "ft:tunewright-tiny:o:88888888",
        random_lora(embedded_base_path(), tmp_path / "o", strength=0.1, seed=5),
    )
    body = {"models": [{"model": pirate}, {"model": other}], "format": "adapter", "combine": {"rank": 100}}
    assert error(api.post("/v1/exports", json=body))["param"] == "combine.rank"


def test_dimensions_that_awq_cannot_pack_are_named(
    make: Callable[..., TestClient], store: Store, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(embedded_base_path(), tmp_path / "odd"))
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name][:, :172].contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    body = {"model": BASE, "format": "awq", "calibration_file": FILE["id"], "group_size": "largest"}
    refused = error(make(base=base).post("/v1/exports", json=body))
    assert refused["code"] == "export_unsupported"
    assert name.removesuffix(".weight") in refused["message"]
    assert "172" in refused["message"]


def test_events_logs_pause_and_resume(api: TestClient, pirate: str, store: Store, data: Workspace) -> None:
    id = api.post("/v1/exports", json={"model": pirate, "format": "merged"}).json()["id"]
    assert api.get(f"/v1/exports/{id}/logs").text == ""
    job = store.jobs.get(id)
    assert job is not None
    store.jobs.mark_valid(id, None, "Files validated")
    assert api.post(f"/v1/exports/{id}/pause").json()["status"] == "paused"
    assert api.post(f"/v1/exports/{id}/resume").json()["status"] == "queued"
    data.job(id).mkdir()
    (data.job(id) / "trainer.log").write_text("one\ntwo\n")
    assert api.get(f"/v1/exports/{id}/logs", params={"tail": 1}).text == "two\n"
    store.jobs.cancel(id)
    streamed = api.get(f"/v1/exports/{id}/events", params={"stream": "true"}).text
    assert "Created export" in streamed
    assert "fine_tuning" not in streamed
    first = json.loads(streamed.split("\n")[1].removeprefix("data: "))
    assert (first["object"], first["id"].partition("-")[0]) == ("export.event", "exportevent")
    assert streamed.endswith("data: [DONE]\n\n")


def _as_dora(lora: Path, folder: Path) -> Path:
    import torch
    from safetensors.torch import load_file

    base = load_file(embedded_base_path() / "model.safetensors")

    def with_magnitudes(tensors: dict[str, Any]) -> dict[str, Any]:
        modules = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("lora_A.weight")]
        return tensors | {
            f"{module}.lora_magnitude_vector": torch.linalg.norm(
                base[module.removeprefix("base_model.model.") + ".weight"].float(), dim=1
            )
            for module in modules
        }

    return tampered(lora, folder, with_magnitudes, use_dora=True)
