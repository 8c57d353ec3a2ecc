"""TensorBoard and MLflow: what they get of a job, how a job goes on with its run, and that no job fails for them."""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tensorboardX.proto.event_pb2 import Event
from tests.engine.conftest import wait_until
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload
from transformers import TrainerControl, TrainerState

from preferences import job_folder, text_rows
from rows import create_job
from tunewright import serve
from tunewright.backup.create import _Gatherer
from tunewright.config import Settings
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.kinds import FINE_TUNING
from tunewright.kinds.fine_tuning import reporting
from tunewright.kinds.fine_tuning.reporting import has_tensorboard, mlflow_run
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.trainer.spec import MlflowRun, TrainingSpec
from tunewright.trainer.trackers import Tracker, trackers

pytestmark = pytest.mark.usefixtures("few_passages")

ROWS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in text_rows(8)]
with_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None,
    reason="mlflow-skinny is not installed: with its 12 further packages it takes 66 MB (tunewright[mlflow])",
)


def folder_of(path: Path, **spec: Any) -> JobFolder:
    return job_folder(path / "job", ROWS, method="supervised", spec=spec)


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Step, name and value, as TensorBoard shows them: without the steps that a resumed run does again."""
    found: list[tuple[int, str, float]] = []
    for path in sorted(folder.iterdir()):
        for event in events_in(path):
            if event.HasField("session_log"):
                found = [one for one in found if one[0] < event.step]
            values = [one for one in event.summary.value if one.WhichOneof("value") == "simple_value"]
            found += [(event.step, one.tag, one.simple_value) for one in values]
    return found


def events_in(path: Path) -> Iterator[Event]:
    """The records of a file: length, its checksum, data, its checksum."""
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4


def log_steps(tracker: Tracker, *steps: int, ends: bool = True) -> None:
    args = SimpleNamespace(to_json_string=lambda: "{}", to_dict=dict, run_name="ftjob-1")
    control = TrainerControl()
    state = TrainerState(is_world_process_zero=True)
    tracker.on_train_begin(args, state, control, model=SimpleNamespace(config=None))
    for step in steps:
        state.global_step = step
        tracker.on_log(args, state, control, logs={"loss": step / 10})
    if ends:
        tracker.on_train_end(args, state, control)


def warnings_in(folder: JobFolder) -> list[str]:
    return [event["message"] for event in folder.read_events(0)[0] if event["level"] == "warn"]


def test_tensorboard_has_each_logged_step_of_a_run(tmp_path: Path) -> None:
    from tunewright.trainer.run import METHODS
    from tunewright.trainer.training import train

    folder = folder_of(tmp_path, tensorboard=True)
    spec = folder.read_spec(TrainingSpec)
    assert train(folder, spec, EventLog(folder), METHODS["supervised"]) is not None
    events = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    losses = [(step, value) for step, name, value in scalars(folder.tensorboard) if name == "train/loss"]
    assert [step for step, _ in losses] == [data["step"] for data in events]
    assert [value for _, value in losses] == pytest.approx([data["train_loss"] for data in events])
    assert warnings_in(folder) == []
    folder.remove_products()
    assert any(folder.tensorboard.iterdir()), "they are kept with the job"


def test_a_resumed_run_goes_on_and_the_steps_done_again_are_there_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tensorboard=True)
    spec, events = folder.read_spec(TrainingSpec), EventLog(folder)
    (killed,) = trackers(folder, spec, events, None)
    log_steps(killed, 1, 2, 3, 4, ends=False)
    wait_until(lambda: len(scalars(folder.tensorboard)) == 4, 60, "its last second to be written")
    (resumed,) = trackers(folder, spec, events, 2)
    log_steps(resumed, 3, 4, 5)
    resumed.end(failed=False)
    assert [step for step, _, _ in scalars(folder.tensorboard)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("fails", ["make", "on_train_begin", "on_log", "on_train_end", "close"])
def test_what_fails_there_is_told_once_and_the_job_goes_on(tmp_path: Path, fails: str) -> None:
    folder = folder_of(tmp_path)
    called: list[str] = []

    def call(name: str) -> Any:
        def called_here(*_: Any, **__: Any) -> Any:
            called.append(name)
            if name == fails:
                raise ConnectionError("no route to host")

        return called_here

    events = ("on_train_begin", "on_log", "on_train_end")

    def made() -> Any:
        call("make")()
        return SimpleNamespace(**{name: call(name) for name in events})

    tracker = Tracker("MLflow", EventLog(folder), made, call("close"))
    log_steps(tracker, 1, 2)
    tracker.end(failed=False)
    (warning,) = warnings_in(folder)
    assert "no route to host" in warning
    assert "The job goes on" in warning
    assert called[-1] == fails, "afterwards it is left alone"


def test_a_rank_other_than_the_first_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.trainer import training

    folder = folder_of(tmp_path, tensorboard=True)
    monkeypatch.setattr(training, "rank", lambda: 1)
    monkeypatch.setattr(training, "_train", lambda *arguments: arguments[-1])
    spec = folder.read_spec(TrainingSpec)
    reports: Any = training.train(folder, spec, EventLog(folder, 1), lambda _: None)  # type: ignore[arg-type, return-value]
    assert reports == []
    assert not folder.tensorboard.exists()


@with_mlflow
def test_mlflow_gets_one_run_of_a_job_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TAGS", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    run = MlflowRun(experiment="support", tags={"team": "a"}, tracking_uri=uri)
    folder = folder_of(tmp_path, mlflow=run)
    spec, events = folder.read_spec(TrainingSpec), EventLog(folder)
    (first,) = trackers(folder, spec, events, None)
    log_steps(first, 1, 2)
    first.end(failed=False)
    (second,) = trackers(folder, spec, events, 2)
    log_steps(second, 3, ends=False)
    second.end(failed=True)
    assert warnings_in(folder) == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED"
    assert found.data.tags["team"] == "a"
    assert found.data.tags["tunewright.job"] == spec.job_id
    assert [one.step for one in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3]


# requests


def created(api: TestClient, integrations: Any) -> Any:  # noqa: F811
    file = upload(api, "".join(json.dumps(row) + "\n" for row in ROWS).encode())["id"]
    body = {"model": BASE, "training_file": file, "integrations": integrations}
    return api.post("/v1/fine_tuning/jobs", json=body)


def test_a_job_shows_what_it_asks_for_and_says_what_is_not_there(api: TestClient) -> None:  # noqa: F811
    asked = [
        {"type": "tensorboard", "wandb": None, "mlflow": None},
        {"type": "mlflow", "wandb": None, "mlflow": {"experiment": "a", "name": None, "tags": {"b": "c"}}},
    ]
    answer = created(api, asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["integrations"] == asked
    assert "--mlflow-tracking-uri" in answer.json()["unreported"]
    assert "TensorBoard" not in answer.json()["unreported"]


@pytest.mark.parametrize(
    "integrations",
    [
        [{"type": "tensorboard"}, {"type": "tensorboard"}],
        [{"type": "tensorboard", "mlflow": {}}],
        [{"type": "mlflow", "mlflow": {"tracking_uri": "http://inside.example"}}],
        [{"type": "aim"}],
    ],
)
def test_what_is_no_integration_is_refused(api: TestClient, integrations: Any) -> None:  # noqa: F811
    answer = created(api, integrations)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("integrations")


def test_its_files_can_be_downloaded_while_they_grow(
    api: TestClient,  # noqa: F811
    store: Store,
    data: Workspace,
) -> None:
    job = create_job(store, base=BASE)
    path = f"/v1/fine_tuning/jobs/{job.id}/tensorboard"
    assert api.get(path).json()["error"]["code"] == "no_tensorboard_files"
    assert api.get("/v1/fine_tuning/jobs/ftjob-x/tensorboard").status_code == 404
    folder = JobFolder(data.job(job.id)).tensorboard
    folder.mkdir(parents=True)
    (folder / "events.out").write_bytes(b"x" * 1000)
    answer = api.get(path)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.size) == (f"{job.id}-tensorboard/events.out", 1000)


def test_its_files_are_in_backups(tmp_path: Path) -> None:
    source, target = JobFolder(tmp_path / "job"), JobFolder(tmp_path / "backup")
    source.tensorboard.mkdir(parents=True)
    (source.tensorboard / "events.out").write_bytes(b"x")
    source.mlflow_file.write_text("{}")
    _Gatherer._records(source.path, target.path, but=set())
    assert (target.tensorboard / "events.out").read_bytes() == b"x"
    assert target.mlflow_file.exists()


def test_the_operator_may_report_all_jobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    plain = create_job(store)
    asking = create_job(store, request={"tensorboard": True, "mlflow": {"experiment": "a"}})
    every = Settings(report_to=["tensorboard", "mlflow"], mlflow_tracking_uri="http://m")
    some = Settings(mlflow_tracking_uri="http://m")
    assert has_tensorboard(every, plain)
    assert not has_tensorboard(some, plain)
    assert has_tensorboard(some, asking)
    assert mlflow_run(every, plain) == MlflowRun(tracking_uri="http://m")
    assert mlflow_run(some, plain) is None
    assert mlflow_run(every, asking) == MlflowRun(experiment="a", tracking_uri="http://m")
    service: Any = SimpleNamespace(settings=some)
    assert FINE_TUNING.environment(service, asking) == {"MLFLOW_TRACKING_TOKEN": "t"}
    assert FINE_TUNING.environment(service, plain) == {}


def test_serve_refuses_what_it_lacks_the_package_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    assert serve.main(["--report-to", "tensorboard", "--data-dir", str(tmp_path)]) == 1
    assert "pip install tunewright[tensorboard]" in capsys.readouterr().err
    assert serve.main(["--report-to", "mlflow", "--data-dir", str(tmp_path)]) == 2
    assert "--mlflow-tracking-uri" in capsys.readouterr().err
    with_password = ["--mlflow-tracking-uri", "http://u:p@m", "--data-dir", str(tmp_path)]
    assert serve.main(with_password) == 2
    assert "p@m" not in capsys.readouterr().err
