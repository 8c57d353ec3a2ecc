"""OpenAI's integration `wandb`: what is reported, what is told where nothing is, and that no job fails for it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from pydantic import SecretStr
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from preferences import job_folder, text_rows
from rows import create_job
from tunewright.config import Settings
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.kinds import FINE_TUNING
from tunewright.kinds.fine_tuning import reporting
from tunewright.kinds.fine_tuning.reporting import reported, why_unreported
from tunewright.store.store import Store
from tunewright.trainer.reporting import WandbReport
from tunewright.trainer.spec import TrainingSpec, WandbProject

pytestmark = pytest.mark.usefixtures("few_passages")

ROWS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in text_rows(8)]
ASKED = {
    "type": "wandb",
    "wandb": {"project": "support", "name": "first", "entity": "us", "tags": ["a", "b"]},
}
KEY = "k" * 40


class Wandb:
    """What of the package is used; it keeps what it is told."""

    def __init__(self, fails: str | None = None) -> None:
        self._fails = fails
        self.begun: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.ended: int | None = None
        self.url = "https://wandb.example/us/support/runs/1"
        self.__spec__ = ModuleSpec("wandb", None)  # accelerate asks whether there is such a module

    def _check(self, what: str) -> None:
        if what == self._fails:
            raise ConnectionError("no route to host")

    def Settings(self, **settings: Any) -> Any:  # noqa: N802
        self.settings = settings
        return SimpleNamespace(**settings)

    def init(self, **arguments: Any) -> Any:
        self._check("init")
        self.begun = arguments
        return self

    def log(self, data: dict[str, Any], step: int) -> None:
        self._check("log")
        self.logged.append((step, data))

    def finish(self, exit_code: int) -> None:
        self._check("finish")
        self.ended = exit_code


def installed(monkeypatch: pytest.MonkeyPatch, fails: str | None = None) -> Wandb:
    wandb = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return wandb


def folder_of(path: Path, **spec: Any) -> JobFolder:
    return job_folder(
        path / "job", ROWS, method="supervised", spec={"wandb": WandbProject(project="support"), **spec}
    )


def begun(folder: JobFolder) -> WandbReport:
    return WandbReport(folder, folder.read_spec(TrainingSpec), EventLog(folder))


def messages(folder: JobFolder) -> list[tuple[str, str]]:
    return [
        (event["level"], event["message"]) for event in folder.read_events(0)[0] if event["type"] == "message"
    ]


def test_a_run_of_the_jobs_id_gets_its_options_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = installed(monkeypatch)
    project = WandbProject(
        project="support", name="first", entity="us", tags=("a",), base_url="https://w.example"
    )
    folder = folder_of(tmp_path, wandb=project)

    report = begun(folder)
    report.metrics({"step": 3, "train_loss": 0.5, "valid_loss": None, "epoch": 1.0})
    report.end(failed=False)

    asked = wandb.begun
    assert (asked["project"], asked["entity"], asked["name"], asked["tags"]) == (
        "support",
        "us",
        "first",
        ["a"],
    )
    assert (asked["id"], asked["resume"]) == ("ftjob-supervised", "allow")
    assert asked["config"]["model"] == "tiny"
    assert asked["config"]["learning_rate"] == 1e-3
    assert (wandb.settings["api_key"], wandb.settings["base_url"]) == (KEY, "https://w.example")
    assert wandb.logged == [(3, {"train_loss": 0.5, "epoch": 1.0})]
    assert wandb.ended == 0
    assert messages(folder) == [("info", f"Reported to Weights & Biases, project support: {wandb.url}")]


def test_the_key_is_nowhere_when_graders_and_readers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    folder = folder_of(tmp_path)
    begun(folder)
    assert "WANDB_API_KEY" not in os.environ
    assert KEY not in folder.spec_file.read_text()


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_there_is_told_once_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    installed(monkeypatch, fails)
    folder = folder_of(tmp_path)
    report = begun(folder)
    for step in (1, 2):
        report.metrics({"step": step, "train_loss": 0.5})
    report.end(failed=False)
    warnings = [message for level, message in messages(folder) if level == "warn"]
    assert len(warnings) == 1
    assert "no route to host" in warnings[0]
    assert "The job goes on" in warnings[0]


def test_a_job_that_fails_ends_its_run_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.trainer import training

    wandb = installed(monkeypatch)
    folder = folder_of(tmp_path)

    def failing(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(training, "_train", failing)
    with pytest.raises(RuntimeError):
        training.train(folder, folder.read_spec(TrainingSpec), EventLog(folder), lambda _: None)  # type: ignore[arg-type, return-value]
    assert wandb.ended == 1


def test_every_metric_event_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.trainer.run import METHODS
    from tunewright.trainer.training import train

    wandb = installed(monkeypatch)
    folder = folder_of(tmp_path)
    assert train(folder, folder.read_spec(TrainingSpec), EventLog(folder), METHODS["supervised"]) is not None
    events = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    assert [step for step, _ in wandb.logged] == [data["step"] for data in events] == [1, 2, 3, 4]
    assert [data["train_loss"] for _, data in wandb.logged] == [data["train_loss"] for data in events]
    assert wandb.ended == 0


# requests


def asked(api: TestClient, integrations: Any) -> Any:  # noqa: F811
    file = upload(api, "".join(json.dumps(row) + "\n" for row in ROWS).encode())["id"]
    body = {"model": BASE, "training_file": file, "integrations": integrations}
    return api.post("/v1/fine_tuning/jobs", json=body)


def test_without_a_key_the_job_is_created_and_says_that_it_is_not_reported(api: TestClient) -> None:  # noqa: F811
    answer = asked(api, [ASKED])
    assert answer.status_code == 200, answer.text
    assert "TUNEWRIGHT_WANDB_API_KEY" in answer.json()["unreported"]
    job = FineTuningJob.model_validate(answer.json())
    assert job.integrations is not None
    assert job.integrations[0].wandb.model_dump() == ASKED["wandb"]
    assert asked(api, None).json()["unreported"] is None


@pytest.mark.parametrize(
    ("integrations", "param"),
    [
        ([{"type": "aim", "wandb": {"project": "a"}}], "integrations.0.type"),
        ([{"type": "wandb"}], "integrations.0.wandb"),
        ([{"type": "wandb", "wandb": {}}], "integrations.0.wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "a", "key": "secret"}}], "integrations.0.wandb.key"),
        ([ASKED, ASKED], "integrations"),
    ],
)
def test_what_is_no_integration_is_refused(api: TestClient, integrations: Any, param: str) -> None:  # noqa: F811
    answer = asked(api, integrations)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_it_is_reported_where_there_is_a_key_and_the_package(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    job = create_job(store, request={"wandb": {"project": "support"}})
    other = create_job(store)
    with_key = Settings(wandb_api_key=KEY, wandb_base_url="https://w.example")
    found = importlib.util.find_spec
    is_there = False
    monkeypatch.setattr(
        reporting.importlib.util, "find_spec", lambda name: is_there if name == "wandb" else found(name)
    )
    is_there = None  # type: ignore[assignment]
    assert "tunewright[wandb]" in (why_unreported(with_key) or "")
    assert reported(with_key, job) is None
    is_there = True
    assert why_unreported(with_key) is None
    assert "no key" in (why_unreported(Settings()) or "")
    assert reported(with_key, job) == WandbProject(project="support", base_url="https://w.example")
    assert reported(with_key, other) is None

    service: Any = SimpleNamespace(settings=with_key)
    assert FINE_TUNING.environment(service, job) == {"WANDB_API_KEY": KEY}
    assert FINE_TUNING.environment(service, other) == {}
    assert isinstance(with_key.jobs.wandb_api_key, SecretStr)
    assert KEY not in repr(with_key)
