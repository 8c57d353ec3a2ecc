"""The check of uploaded files, and what jobs may do with files of each status."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rows import create_job, engine_info
from tunewright.apart import CutOff, OutOfMemory
from tunewright.api.files import checks
from tunewright.api.files.checks import FileChecks
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.errors import InvalidRequest, StorageFull
from tunewright.kinds import FINE_TUNING
from tunewright.kinds import data as kinds_data
from tunewright.kinds.data import DataOptions, inspect_apart
from tunewright.kinds.fine_tuning import planning
from tunewright.kinds.kind import JobRefused, Service
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import FileReport, Reading
from tunewright.store.states import FileStatus
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingSpec

pytestmark = pytest.mark.each_database

BASE = "tunewright-tiny"


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(built: dict[str, Any], store: Store, data: Workspace) -> TestClient:
    settings = Settings(data_dir=data.path, base=[f"{BASE}={embedded_base_path()}"])
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/s", engine_info(path=embedded_base_path()))
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def chat(number: int) -> dict[str, Any]:
    said = [("user", f"What is {number}?"), ("assistant", str(number))]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


CHAT = lines(*map(chat, range(200)))
PREFERENCE = lines({"prompt": "a", "chosen": "b", "rejected": "c"})
GSM8K = lines(*({"question": f"What is {n}?", "answer": str(n)} for n in range(200)))


def upload(api: TestClient, content: bytes) -> dict[str, Any]:
    answer = api.post("/v1/files", files={"file": ("rows", content)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def job(api: TestClient, content: bytes, **more: Any) -> Any:
    body = {"model": BASE, "training_file": upload(api, content)["id"], **more}
    return api.post("/v1/fine_tuning/jobs", json=body)


def wait_for(condition: Callable[[], Any], timeout: float = 30) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


# the check


def test_the_answer_to_the_upload_of_a_small_file_has_its_format_and_rows(api: TestClient) -> None:
    file = upload(api, gzip.compress(CHAT))
    assert (file["status"], file["status_details"]) == ("processed", None)
    assert file["report"] == {
        "container": "jsonl.gz", "format": "openai_chat", "kind": "chat", "rows": 200, "faults": [],
        "has_more_faults": False, "ignored_fields": [],
    }  # fmt: skip
    assert api.get(f"/v1/files/{file['id']}").json() == file
    assert api.get("/v1/files").json()["data"][0] == file


def test_the_faults_of_a_file_are_its_status(api: TestClient) -> None:
    file = upload(api, CHAT + lines({"messages": []}) + b"[\n")
    assert file["status"] == "error"
    assert file["status_details"].startswith('line 201: "messages" must be a list')
    assert [fault["line"] for fault in file["report"]["faults"]] == [201, 202]
    rows = upload(api, json.dumps([chat(1), {"messages": []}]).encode())
    assert [(fault["line"], fault["row"]) for fault in rows["report"]["faults"]] == [(None, 2)]
    whole = upload(api, b"%PDF-1.7")
    assert (whole["status"], whole["report"]["faults"]) == ("error", [])
    assert whole["status_details"].startswith("the file is a PDF")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Checks wait for this event."""
    event = threading.Event()

    def wait_first(*args: Any) -> FileReport:
        event.wait(30)
        return inspect_apart(*args)

    monkeypatch.setattr(checks, "inspect_apart", wait_first)
    yield event
    event.set()


def test_a_large_file_is_answered_at_once_and_checked_afterwards(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(checks, "SMALL", 100)
    file = upload(api, CHAT)
    assert (file["status"], file["report"], file["status_details"]) == ("uploaded", None, None)
    assert job(api, CHAT).status_code == 200, "a job may wait for a file that is not checked yet"
    held.set()
    shown = wait_for(lambda: (f := api.get(f"/v1/files/{file['id']}").json())["status"] != "uploaded" and f)
    assert (shown["status"], shown["report"]["rows"]) == ("processed", 200)


def test_a_small_file_does_not_wait_for_large_ones(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(checks, "SMALL", 200)
    assert upload(api, CHAT)["status"] == "uploaded"
    monkeypatch.setattr(checks, "inspect_apart", inspect_apart)
    assert upload(api, PREFERENCE)["status"] == "processed"


def test_the_answer_does_not_wait_for_ever(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(checks, "_PATIENCE", 0.05)
    assert upload(api, PREFERENCE)["status"] == "uploaded"


def test_a_check_that_was_interrupted_goes_on_after_a_restart(
    api: TestClient, store: Store, data: Workspace, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(checks, "_PATIENCE", 0.0)
    ids = [upload(api, content)["id"] for content in (CHAT, PREFERENCE)]
    monkeypatch.setattr(checks, "inspect_apart", inspect_apart)
    FileChecks().resume(store, data)  # of another process
    wait_for(lambda: not [record for record in store.files.unchecked() if record.id in ids])
    assert {record.status for record in map(store.files.get, ids) if record} == {FileStatus.PROCESSED}


def test_a_check_that_cannot_be_recorded_is_tried_again(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_AGAIN_AFTER", 0.05)
    finish, failures = store.files.finish_check, iter([StorageFull("full"), OSError("gone")])

    def record(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return finish(*args)

    monkeypatch.setattr(store.files, "finish_check", record)
    assert upload(api, CHAT)["status"] == "processed"


def test_a_file_that_is_deleted_during_its_check_stays_deleted(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    monkeypatch.setattr(checks, "_PATIENCE", 0.0)
    id = upload(api, CHAT)["id"]
    assert api.delete(f"/v1/files/{id}").status_code == 200
    held.set()
    assert upload(api, PREFERENCE)["id"] != id
    assert store.files.get(id) is None


@pytest.mark.parametrize(
    ("error", "told"), [(OutOfMemory(), "takes too much memory"), (CutOff(9), "took more than")]
)
def test_a_file_that_breaks_the_process_that_reads_it_is_an_error_in_words_about_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(kinds_data, "call_apart", broken)
    path = tmp_path / "rows"
    path.write_bytes(CHAT)
    with path.open("rb") as file:
        problem = inspect_apart(file, Reading()).problem
    assert problem is not None
    assert told in problem
    assert "dapter" not in problem


# jobs


def refused(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    return dict(answer.json()["error"])


def test_a_job_on_a_faulty_file_is_refused_with_the_faults(api: TestClient) -> None:
    error = refused(job(api, CHAT + b"[\n"))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert "cannot be used: line 201: not valid JSON" in error["message"]
    error = refused(job(api, CHAT, validation_file=upload(api, b"{}\n")["id"]))
    assert (error["param"], error["code"]) == ("validation_file", "invalid_validation_file")


@pytest.mark.parametrize(
    ("content", "kind", "could"),
    [
        (PREFERENCE, "preference", "dpo, orpo or reward could."),
        (lines({"prompt": "a", "completion": "b", "label": True}), "labelled", "kto could."),
    ],
)  # fmt: skip
def test_rows_that_the_method_cannot_use_are_refused_with_the_one_that_could(
    api: TestClient, content: bytes, kind: str, could: str
) -> None:
    message = refused(job(api, content))["message"]
    assert f"the file has {kind} rows" in message
    assert could in message
    assert "supervised needs chat or prompt_completion or text rows" in message


@pytest.mark.parametrize("content", [CHAT, lines({"prompt": "a", "completion": "b"})])
def test_dpo_refuses_rows_without_two_answers(api: TestClient, content: bytes) -> None:
    error = refused(job(api, content, method={"type": "dpo"}))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert "the method dpo cannot learn from; supervised could. dpo needs preference rows" in error["message"]


def test_kto_refuses_rows_without_a_label(api: TestClient) -> None:
    error = refused(job(api, PREFERENCE, method={"type": "kto"}))
    assert (
        "the method kto cannot learn from; dpo, orpo or reward could. kto needs labelled rows"
        in error["message"]
    )


COLUMNS = {"prompt": "question", "completion": "answer"}


def test_a_job_may_say_what_the_columns_of_a_faulty_file_are(api: TestClient) -> None:
    assert refused(job(api, GSM8K))["param"] == "training_file"
    created = job(api, GSM8K, data={"columns": COLUMNS})
    assert created.status_code == 200, created.text
    assert created.json()["data"]["columns"] == COLUMNS
    error = refused(job(api, GSM8K, data={"columns": {"prompt": "q", "completion": "a"}}))
    assert 'has none of the columns "a", "q" of data.columns; has "answer", "question"' in error["message"]


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"columns": {"promt": "a"}}, "data.columns"),
        ({"columns": {}}, "data.columns"),
        ({"tags": {"from": "a"}}, "data.tags"),
        ({"alpaca": "vicuna"}, "data.alpaca"),
        ({"validation_share": 0.9}, "data.validation_share"),
        ({"validation_share": 0.1}, "data.validation_share"),
    ],
)
def test_data_that_means_nothing_is_refused_by_its_field(api: TestClient, options: Any, param: str) -> None:
    assert refused(job(api, CHAT, data=options))["param"] == param


def test_auto_holds_out_a_share_of_the_training_file(api: TestClient) -> None:
    shown = job(api, CHAT, validation_file="auto").json()
    assert (shown["validation_file"], shown["data"]["validation_share"]) == ("auto", 0.05)
    asked = job(api, CHAT, validation_file="auto", data={"validation_share": 0.2}).json()
    assert asked["data"]["validation_share"] == 0.2


# what the scheduler does with the request


def validated(
    api: TestClient,
    store: Store,
    data: Workspace,
    content: bytes,
    devices: Sequence[str] = ("cpu",),
    **more: Any,
) -> Any:
    id = job(api, content, **more).json()["id"]
    created = store.jobs.get(id)
    assert created is not None
    on_gpu = devices[0] != "cpu"
    service = Service(Settings(data_dir=data.path), store, data, on_gpu=on_gpu, devices=devices)
    base = inspect_base(Settings().models.bases[0])
    return FINE_TUNING.validate(service, created, base)


@pytest.mark.parametrize(("memory", "expected"), [(80, False), (0.4, True)])
def test_a_job_decides_on_checkpointing_by_the_memory_of_its_gpu_and_tells_why(
    api: TestClient,
    store: Store,
    data: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    memory: float,
    expected: bool,
) -> None:
    monkeypatch.setattr(planning, "gpu_memory", lambda _: ("NVIDIA One", int(memory * 2**30)))

    found = validated(api, store, data, CHAT, ["cuda:0"])
    asked = validated(
        api, store, data, CHAT, ["cuda:0"], tuning={"gradient_checkpointing": not expected}, seed=5
    )

    assert found.resolved.gradient_checkpointing is expected
    assert f"gradient_checkpointing is {'on' if expected else 'off'}" in found.summary
    assert "flash_attn is not installed" in dict(found.warnings)["attention_fallback"]
    assert "GiB" in found.summary
    assert asked.resolved.gradient_checkpointing is not expected
    assert "gradient_checkpointing" not in asked.summary


@pytest.mark.parametrize(
    ("tuning", "code", "fix"),
    [
        ({}, "few_rows", "collecting more"),
        ({"rank": 64}, "rank_too_large", "Set tuning.rank 8"),
        ({"learning_rate": 0.5}, "learning_rate_out_of_range", "set tuning.learning_rate"),
        ({"batch_size": 2}, "batch_out_of_range", "set tuning.batch_size from 32 to 128"),
        ({"target_modules": ["q_proj", "no_proj"]}, "target_modules_missed", "The base has"),
    ],
)
def test_the_warnings_of_the_plan_are_those_of_the_job(
    api: TestClient, store: Store, data: Workspace, tuning: Any, code: str, fix: str
) -> None:
    found = dict(validated(api, store, data, CHAT, tuning=tuning).warnings)
    assert fix in found[code]
    assert set(found) == {"few_rows", code}, "and of nothing else"


@pytest.mark.parametrize(
    "how", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "made-up"}, {"quant_method": "awq"}]
)
def test_a_quantized_base_is_refused_by_plan_and_validation_with_what_to_use(
    api: TestClient, store: Store, data: Workspace, tmp_path: Path, how: Any
) -> None:
    folder = tmp_path / "quantized"
    shutil.copytree(embedded_base_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    base = replace(inspect_base(Settings().models.bases[0]), path=folder)
    created = store.jobs.get(job(api, CHAT).json()["id"])
    assert created is not None
    with pytest.raises(JobRefused, match=rf"quantized already \({how['quant_method']}\).* 16-bit") as told:
        FINE_TUNING.validate(Service(Settings(data_dir=data.path), store, data, on_gpu=False), created, base)
    assert (told.value.code, told.value.param) == ("unsupported_base", "model")
    file = planning.PlannedFile(tmp_path / "none", "none")
    options: Any = {"tuning": TuningOptions(), "hyperparameters": HyperparameterOptions(), "max_rank": 8}
    with pytest.raises(InvalidRequest, match="quantized already"):
        planning.plan_job(base, [file], planning.machine_described("L4"), **options)


def test_held_out_rows_do_not_count_as_training_rows(api: TestClient, store: Store, data: Workspace) -> None:
    assert "200 rows, openai_chat" in validated(api, store, data, CHAT).summary
    summary = validated(api, store, data, CHAT, validation_file="auto").summary
    assert "of them held out" in summary


def test_a_share_that_holds_out_nothing_is_refused_with_one_that_would(
    api: TestClient, store: Store, data: Workspace
) -> None:
    with pytest.raises(JobRefused, match=r"the share 0.05 of 2 rows holds out none: .* above 0\.\d+") as told:
        validated(api, store, data, lines(chat(1), chat(2)), validation_file="auto")
    assert told.value.param == "validation_file"


@pytest.mark.parametrize("held_out", ["auto", "a file"])
def test_held_out_answers_that_are_all_good_have_no_margin_to_find_the_best_checkpoint_by(
    api: TestClient, store: Store, data: Workspace, held_out: str
) -> None:
    def rows(*labels: bool) -> bytes:
        return lines(
            *({"prompt": f"{n}?", "completion": "yes", "label": labels[n % len(labels)]} for n in range(200))
        )

    good, both = rows(True), rows(True, False)
    options: dict[str, Any] = {
        "method": {"type": "kto"},
        "tuning": {"best_checkpoint": "valid_reward_margin"},
    }
    for content in (good, both):
        if held_out == "auto":
            given, training = "auto", content
        else:
            given, training = upload(api, content)["id"], both
        if content is both:
            assert validated(api, store, data, training, validation_file=given, **options).resolved
            continue
        with pytest.raises(JobRefused, match="all held-out answers are good") as told:
            validated(api, store, data, training, validation_file=given, **options)
        assert (told.value.code, told.value.param) == ("invalid_validation_file", "validation_file")
        assert validated(api, store, data, training, validation_file=given, method={"type": "kto"}).resolved


def test_equal_rows_cannot_be_parted(api: TestClient, store: Store, data: Workspace) -> None:
    with pytest.raises(JobRefused, match=r"holds out none|none is left to train on"):
        validated(api, store, data, lines(*[chat(1)] * 50), validation_file="auto")


def test_the_trainer_reads_both_parts_of_the_file_as_the_job_says(store: Store, data: Workspace) -> None:
    asked = DataOptions(columns=COLUMNS, validation_share=0.2)
    resolved = resolve(
        tuning=TuningOptions(),
        hyperparameters=HyperparameterOptions(),
        rows=10,
        context=64,
        max_rank=8,
        device="cpu",
    )
    created = create_job(store, request={"data": asked}, device="cpu", resolved=resolved)
    service = Service(Settings(data_dir=data.path), store, data, on_gpu=False)
    base = inspect_base(Settings().models.bases[0])
    spec = FINE_TUNING.spec(service, created, base)
    assert isinstance(spec, TrainingSpec)
    assert spec.validation_file == spec.training_file
    common = {"columns": COLUMNS, "held_out_share": 0.2, "alpaca": "chat"}
    assert spec.reading == Reading(part="training", **common)
    assert spec.validation_reading == Reading(part="held_out", **common)
    without_template = FINE_TUNING.spec(service, created, replace(base, chat_template=None))
    assert isinstance(without_template, TrainingSpec)
    assert without_template.reading.alpaca == "template"
