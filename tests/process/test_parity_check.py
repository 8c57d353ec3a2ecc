"""The parity check with real processes: a script stands in for the reference, a function for the engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rows import FILE, PRODUCT, Publish, create_job, engine_info
from tunewright.config import Settings
from tunewright.engine.http import EngineBusy, EngineError
from tunewright.errors import DatabaseUnavailable
from tunewright.evaluate.folder import NO_ROOM, ParityFolder, ParitySpec
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.registry.workspace import Workspace
from tunewright.scheduler import parity, references
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.parity import MAX_FAILURES, NotLoaded, ParityChecker
from tunewright.store.records import Engine, Job, TunedModel
from tunewright.store.states import Desired, EngineState, JobState, ModelState, Residency
from tunewright.store.store import Store

NAME = PRODUCT["name"]
RESULT = {"rows": [], "renderings": [], "device": "cpu", "dtype": "bfloat16", "seconds": 1, "versions": {}}
WRITE = f"""for folder in $folders; do echo '{json.dumps(RESULT)}' > $folder/reference.json; done"""
PASS = {"verdict": "pass", "reason": "Parity with peft: slope 1."}
FAIL = {"verdict": "fail", "reason": "No parity with peft: slope 0.5."}


JUDGED: list[str] = []
"""Names of the models that the engine was asked about."""


class Checker:
    """ParityChecker as the scheduler's process has it; `again()` is another process on the same data folder."""

    def __init__(self, store: Store, data: Workspace, settings: Settings, lifeline: int) -> None:
        self.store, self.data, self.settings, self.lifeline = store, data, settings, lifeline
        self.judged = JUDGED
        self.parity = ParityChecker(
            settings, store, data, lifeline, Devices(["cpu"], store), ForkServer(data.run, lifeline, 0)
        )

    def again(self, **changes: Any) -> Checker:
        return Checker(self.store, self.data, self.settings.with_options(**changes), self.lifeline)

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.parity.tick()
            time.sleep(0.02)

    def model(self, name: str = NAME) -> TunedModel:
        found = self.store.models.get(name)
        assert found is not None
        return found

    def parity_of(self, name: str = NAME) -> dict[str, Any]:
        """What is shown of its check."""
        return {key: value for key, value in (self.model(name).parity or {}).items() if key != "content"}

    def job(self) -> Job:
        assert self.model().job_id is not None
        found = self.store.jobs.get(self.model().job_id or "")
        assert found is not None
        return found

    @property
    def folder(self) -> ParityFolder:
        return ParityFolder(self.data.tmp / "parity" / self.model().id)

    def starts(self) -> int:
        return len(self.runs.read_text().split()) if self.runs.exists() else 0

    @property
    def runs(self) -> Path:
        return self.data.path / "runs"

    def messages(self, job: str) -> list[str]:
        return [
            event.message for event in self.store.jobs.events(job, after=None, limit=100, ascending=True)[0]
        ]


@pytest.fixture
def reference(tmp_path: Path, data: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the shell script that is the next reference process; `$folders` are its own, `$run` counts its starts."""
    script = tmp_path / "reference"
    monkeypatch.setattr(references, "sys", SimpleNamespace(executable=str(script)))
    monkeypatch.setattr(parity, "_AGAIN_AFTER", 0.05)
    monkeypatch.setattr(parity, "_WAIT", 0.3)

    def run(text: str) -> None:
        runs = data.path / "runs"
        script.write_text(
            f"#!/bin/sh\nshift 2\nfolders=$*\necho x >> {runs}\nrun=$(wc -l < {runs})\n{text}\n"
        )
        script.chmod(0o755)

    run(WRITE)
    return run


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets the result of asking the engine: the content of `parity`, or an exception."""
    answers: list[Any] = [PASS]
    JUDGED.clear()

    def judge(engine: Engine, model: TunedModel, spec: ParitySpec, reference: Any) -> dict[str, Any]:
        JUDGED.append(model.name)
        if isinstance(answers[0], BaseException):
            raise answers[0]
        return {"checked_at": 1.0, **answers[0]}

    monkeypatch.setattr(parity, "judge", judge)
    return lambda answer: answers.__setitem__(0, answer)


@pytest.fixture
def lifeline() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(writing)  # ends what is left
    os.close(reading)


@pytest.fixture
def engine(store: Store) -> Engine:
    store.engines.declare(["tiny"])
    info = engine_info(path="/base", max_model_len=128, max_adapters=4)
    store.engines.starting("tiny", "/nowhere.sock", info)
    store.engines.set_state("tiny", EngineState.READY)
    found = store.engines.get("tiny")
    assert found is not None
    return found


@pytest.fixture
def checker(
    store: Store,
    data: Workspace,
    engine: Engine,
    publish_model: Publish,
    reference: Any,
    verdict: Any,
    lifeline: int,
) -> Checker:
    """A job's adapter waits, loaded; its job waits for the verdict."""
    assert publish_model({"state": "checking"})
    store.engines.set_residency(engine, PRODUCT["sha256"], Residency.LOADED)
    return Checker(store, data, Settings(data_dir=data.path, parity="on"), lifeline)


def test_a_job_ends_with_the_verdict_on_its_adapter(checker: Checker) -> None:
    assert (checker.job().state, checker.job().model) == (JobState.RUNNING, None)
    checker.until(lambda: checker.job().state.is_final)
    assert (checker.job().state, checker.job().result) == (
        JobState.SUCCEEDED,
        FineTuningResult(model=NAME, trained_tokens=7),
    )
    assert (checker.model().state, checker.parity_of()) == (ModelState.READY, {"checked_at": 1.0, **PASS})
    messages = checker.messages(checker.job().id)
    assert messages[-3:] == [
        PASS["reason"],
        f"New fine-tuned model created: {NAME}",
        "The job has successfully completed",
    ]
    assert not checker.folder.path.exists()


def test_an_adapter_that_fails_is_quarantined_and_its_job_says_why(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    verdict(FAIL)
    checker.until(lambda: checker.job().state.is_final)
    error = checker.job().error
    assert error is not None
    assert (checker.job().state, checker.model().state, error.code) == (
        JobState.FAILED, ModelState.QUARANTINED, "parity_failed",
    )  # fmt: skip
    assert FAIL["reason"] in error.message
    assert f"/v1/adapters/{checker.model().id}/load?force=true" in error.message
    assert checker.store.models.wanted_adapters("tiny") == {}, "the engine lets go of it"


def test_forced_it_is_served_and_the_fact_is_on_record(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    verdict(FAIL)
    checker.until(lambda: checker.job().state.is_final)
    checker.store.checks.force(checker.model().id, who="ann")
    model = checker.model()
    assert model.parity is not None
    assert (model.state, model.parity["verdict"], model.parity["forced"]["who"]) == (
        ModelState.READY,
        "fail",
        "ann",
    )
    for _ in range(5):
        checker.parity.tick()
    assert (checker.starts(), checker.model().state) == (1, ModelState.READY)


def test_what_has_no_measurable_effect_is_served_and_said_to_be_so(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    verdict({"verdict": "no_measurable_effect", "reason": "too little"})
    checker.until(lambda: checker.job().state.is_final)
    assert (checker.job().state, checker.model().state) == (JobState.SUCCEEDED, ModelState.READY)
    assert checker.parity_of() == {
        "checked_at": 1.0,
        "verdict": "no_measurable_effect",
        "reason": "too little",
    }


def test_a_reference_that_only_crashes_quarantines(
    checker: Checker, reference: Callable[[str], None]
) -> None:
    reference("echo 'MemoryError: too large' >&2; exit 1")
    checker.until(lambda: checker.job().state.is_final)
    error = checker.job().error
    assert error is not None
    assert (error.code, checker.starts()) == ("parity_not_checked", MAX_FAILURES)
    assert "MemoryError: too large" in error.message
    assert (checker.model().parity or {})["verdict"] == "not_checked"


def test_a_reference_that_crashes_once_is_started_again(
    checker: Checker, reference: Callable[[str], None]
) -> None:
    reference(f"if [ $run = 1 ]; then kill -9 $$; fi; {WRITE}")
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    assert checker.starts() == 2


def test_a_reference_that_hangs_is_given_up(checker: Checker, reference: Callable[[str], None]) -> None:
    reference("sleep 60")
    impatient = checker.again(step_timeout=0.2)
    impatient.until(lambda: impatient.job().state.is_final)
    assert "no result within 0 s" in impatient.job().error.message


def test_a_new_scheduler_adopts_the_reference(checker: Checker, reference: Callable[[str], None]) -> None:
    reference(f"while [ ! -e $folders/go ]; do sleep 0.05; done; {WRITE}")
    checker.until(lambda: checker.starts() == 1)
    second = checker.again()
    for _ in range(5):
        second.parity.tick()
    (second.folder.path / "go").touch()
    second.until(lambda: second.job().state is JobState.SUCCEEDED)
    assert second.starts() == 1


def test_a_scheduler_that_was_killed_before_the_verdict_goes_on(checker: Checker) -> None:
    checker.until(lambda: checker.folder.reference_file.exists())
    second = checker.again()
    second.until(lambda: second.job().state is JobState.SUCCEEDED)
    assert second.starts() == 1, "the result was there"


def test_a_reference_and_its_watcher_that_die_with_everything_begin_again(
    checker: Checker, reference: Callable[[str], None]
) -> None:
    reference(f"if [ $run = 1 ]; then sleep 60; fi; {WRITE}")
    checker.until(lambda: checker.starts() == 1)
    process = checker.parity._references._process
    assert process is not None
    group = process.group
    os.killpg(group.record.group, signal.SIGKILL)
    for child in (group._child, group._watcher):
        assert child is not None
        child.wait()
    second = checker.again()
    second.until(lambda: second.job().state is JobState.SUCCEEDED)


def test_it_waits_for_the_engine_and_for_the_adapter_in_it(checker: Checker, engine: Engine) -> None:
    checker.store.engines.set_state("tiny", EngineState.BACKOFF)
    for _ in range(5):
        checker.parity.tick()
    assert checker.starts() == 0
    checker.store.engines.set_state("tiny", EngineState.READY)
    checker.store.engines.set_residency(engine, PRODUCT["sha256"], None)
    checker.until(checker.folder.reference_file.exists)
    for _ in range(5):
        checker.parity.tick()
    assert checker.job().state is JobState.RUNNING
    checker.store.engines.set_residency(engine, PRODUCT["sha256"], Residency.LOADED)
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)


def test_an_adapter_that_was_evicted_meanwhile_is_wanted_again(checker: Checker) -> None:
    checker.store.models.want(NAME, Desired.UNLOADED)
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    assert checker.model().desired == "loaded"


def test_an_engine_that_refuses_the_adapter_again_and_again_quarantines(
    checker: Checker, engine: Engine
) -> None:
    def refuse() -> bool:
        checker.store.engines.set_residency(engine, PRODUCT["sha256"], Residency.FAILED, error="torn file")
        return checker.job().state.is_final

    checker.until(refuse)
    assert "the engine could not load it: torn file" in checker.job().error.message


@pytest.mark.parametrize("error", [EngineError("internal error"), KeyError("choices")])
def test_an_engine_that_breaks_down_over_it_again_and_again_quarantines(
    checker: Checker, verdict: Callable[[Any], None], error: Exception
) -> None:
    verdict(error)
    checker.until(lambda: checker.job().state.is_final)
    assert checker.job().error.code == "parity_not_checked"
    assert checker.starts() == 1, "the reference is asked once"


def test_a_gpu_that_was_lent_is_given_back_where_the_database_is_lost(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = checker.parity._devices = Devices(["cuda:0"], checker.store)
    spec = checker.parity._spec

    def lost(one: Any, engine: Any, device: str) -> ParitySpec:
        if device:
            raise DatabaseUnavailable("it cannot be reached")
        return spec(one, engine, device)

    monkeypatch.setattr(checker.parity, "_spec", lost)
    with pytest.raises(DatabaseUnavailable):
        checker.until(lambda: False)
    assert devices.for_jobs() == ["cuda:0"]


@pytest.mark.parametrize(
    "error", [EngineBusy("the engine does not answer"), DatabaseUnavailable("it cannot be reached")]
)
def test_a_busy_engine_is_asked_again_however_often(
    checker: Checker, verdict: Callable[[Any], None], error: Exception
) -> None:
    """And so is one whose state cannot be read now."""
    verdict(error)
    for _ in range(20 * MAX_FAILURES):
        checker.parity.tick()
        time.sleep(0.02)
    assert checker.job().state is JobState.RUNNING
    verdict(PASS)
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    assert checker.starts() == 1, "the reference is asked once"


def test_an_adapter_that_ends_the_engine_again_and_again_is_quarantined(
    checker: Checker, engine: Engine, verdict: Callable[[Any], None]
) -> None:
    verdict(EngineBusy("the engine does not answer"))

    def restart() -> bool:
        check = checker.parity._checks.get(checker.model().id)
        current = checker.store.engines.get("tiny")
        assert current is not None
        if check is not None and current.run in check.lost_runs:
            checker.store.engines.starting("tiny", "/nowhere.sock", engine.info or engine_info())
            checker.store.engines.set_state("tiny", EngineState.READY)
            again = checker.store.engines.get("tiny")
            assert again is not None
            checker.store.engines.set_residency(again, PRODUCT["sha256"], Residency.LOADED)
        return checker.job().state.is_final

    checker.until(restart)
    assert f"in {MAX_FAILURES} of its runs" in checker.job().error.message


def test_an_engine_without_room_is_waited_for(checker: Checker, engine: Engine) -> None:
    for number in range(4):
        checker.store.engines.set_residency(engine, f"{number}" * 64, Residency.LOADED)
    for _ in range(2 * MAX_FAILURES):
        checker.store.engines.set_residency(
            engine, PRODUCT["sha256"], Residency.FAILED, error="all are in use"
        )
        checker.parity.tick()
    assert checker.job().state is JobState.RUNNING
    checker.store.engines.set_residency(engine, PRODUCT["sha256"], Residency.LOADED)
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)


def test_an_adapter_that_is_being_unloaded_is_asked_about_later(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    verdict(NotLoaded())
    for _ in range(20):
        checker.parity.tick()
        time.sleep(0.02)
    assert checker.job().state is JobState.RUNNING
    verdict(PASS)
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)


def test_without_room_it_waits_for_jobs_that_train(
    checker: Checker, reference: Callable[[str], None]
) -> None:
    other = create_job(checker.store, fingerprint="other", state=JobState.RUNNING, device="cpu")
    reference(f"if [ $run -lt {MAX_FAILURES + 2} ]; then exit {NO_ROOM}; fi; {WRITE}")
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    checker.store.jobs.release(other.id)


def test_a_cancelled_job_leaves_nothing(checker: Checker, reference: Callable[[str], None]) -> None:
    reference("sleep 60")
    checker.until(lambda: checker.starts() == 1)
    model, process = checker.model(), checker.parity._references._process
    assert process is not None
    checker.store.jobs.cancel(model.job_id or "")
    assert checker.store.models.get(NAME) is None
    checker.parity.tick()
    assert not process.is_alive()
    assert list(checker.data.tmp.iterdir()) == []


def test_switched_off_nothing_waits(checker: Checker) -> None:
    off = checker.again(parity="off")
    off.parity.tick()
    assert (off.job().state, off.model().state, off.starts()) == (JobState.SUCCEEDED, ModelState.READY, 0)
    assert (off.model().parity or {})["verdict"] == "not_checked"


def test_a_served_adapter_that_is_checked_again_is_served_meanwhile(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    checker.store.checks.request(checker.model().id)
    assert (checker.model().state, "asked_at" in (checker.model().parity or {})) == (ModelState.READY, True)
    verdict(FAIL)
    checker.until(lambda: checker.model().state is ModelState.QUARANTINED)
    assert (checker.job().state, checker.starts()) == (JobState.SUCCEEDED, 2)
    checker.store.checks.request(checker.model().id)
    assert checker.model().state is ModelState.CHECKING
    verdict(PASS)
    checker.until(lambda: checker.model().state is ModelState.READY)
    assert "asked_at" not in (checker.model().parity or {})


def test_what_is_served_stays_so_where_it_could_not_be_checked_again(
    checker: Checker, reference: Callable[[str], None]
) -> None:
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    reference("exit 1")
    checker.store.checks.request(checker.model().id)
    checker.until(lambda: "asked_at" not in (checker.model().parity or {}))
    assert (checker.model().state, (checker.model().parity or {})["verdict"]) == (
        ModelState.READY,
        "not_checked",
    )


def test_switched_off_a_quarantined_one_is_still_checked_when_somebody_asks(
    checker: Checker, verdict: Callable[[Any], None]
) -> None:
    verdict(FAIL)
    checker.until(lambda: checker.job().state.is_final)
    off = checker.again(parity="off")
    off.store.checks.request(checker.model().id)
    off.until(lambda: off.model().state is not ModelState.CHECKING)
    assert (off.model().state, off.starts()) == (ModelState.QUARANTINED, 2)


def test_checkpoints_are_checked_when_they_are_to_be_loaded(
    checker: Checker, publish_model: Publish, engine: Engine
) -> None:
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    step = {"name": f"{NAME}:ckpt-step-1", "checkpoint_step": 1, "sha256": "c" * 64, "desired": "unloaded"}
    publish_model({"name": "ft:tiny::2", "state": "checking"}, {**step, "state": "checking"})
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)
    for _ in range(5):
        checker.parity.tick()
    assert checker.model(step["name"]).state is ModelState.CHECKING
    assert checker.model(step["name"]).shown_state == "unchecked", "nothing checks it"
    checker.store.models.want(step["name"], Desired.LOADED)
    checker.store.engines.set_residency(engine, step["sha256"], Residency.LOADED)
    checker.until(lambda: checker.model(step["name"]).state is ModelState.READY)


def test_one_reference_process_measures_all_that_wait(
    checker: Checker, publish_model: Publish, engine: Engine
) -> None:
    names = [NAME, *(f"ft:tiny::{number}" for number in range(2, 6))]
    for number, name in enumerate(names[1:], 2):
        publish_model({"name": name, "sha256": f"{number}" * 64, "state": "checking"})
        checker.store.engines.set_residency(engine, f"{number}" * 64, Residency.LOADED)
    checker.until(lambda: all(checker.model(name).state is ModelState.READY for name in names))
    assert checker.starts() == 1
    assert list(checker.data.tmp.iterdir()) == []


def test_equal_weights_are_checked_once(checker: Checker, publish_model: Publish) -> None:
    names = [NAME, *(f"ft:tiny::{number}" for number in range(2, 39))]
    for name in names[1:]:
        publish_model({"name": name, "state": "checking"})
    jobs = [checker.model(name).job_id or "" for name in names]
    checker.until(lambda: all(checker.model(name).state is ModelState.READY for name in names))
    assert (checker.starts(), len(checker.judged)) == (1, 1)
    assert checker.parity_of() == {"checked_at": 1.0, **PASS}
    assert all(
        checker.parity_of(name) == {"checked_at": 1.0, **PASS, "measured_as": NAME} for name in names[1:]
    )
    found = [checker.store.jobs.get(job) for job in jobs]
    assert {job.state for job in found if job} == {JobState.SUCCEEDED}
    assert PASS["reason"] in checker.messages(jobs[-1])
    publish_model({"name": "ft:tiny::later", "state": "checking"})
    second = checker.again()
    second.until(lambda: second.model("ft:tiny::later").state is ModelState.READY)
    assert (second.starts(), second.parity_of("ft:tiny::later")["verdict"]) == (1, "pass")
    assert list(checker.data.tmp.iterdir()) == []


def test_equal_weights_fail_together(
    checker: Checker, publish_model: Publish, verdict: Callable[[Any], None]
) -> None:
    verdict(FAIL)
    publish_model({"name": "ft:tiny::2", "state": "checking"})
    checker.until(lambda: checker.model().state is ModelState.QUARANTINED)
    checker.store.checks.force(checker.model().id, who="ann")
    publish_model({"name": "ft:tiny::3", "state": "checking"})
    for name in ("ft:tiny::2", "ft:tiny::3"):
        checker.until(lambda name=name: checker.model(name).state is ModelState.QUARANTINED)  # type: ignore[misc]
        assert "forced" not in checker.parity_of(name)
        job = checker.store.jobs.get(checker.model(name).job_id or "")
        assert job is not None
        assert job.error is not None
        assert (job.error.code, name in job.error.message) == ("parity_failed", True)
    assert checker.starts() == 1


def test_what_cannot_be_checked_is_tried_for_all_of_its_names_together(
    checker: Checker, publish_model: Publish, reference: Callable[[str], None]
) -> None:
    reference("exit 1")
    names = [NAME, "ft:tiny::2", "ft:tiny::3"]
    for name in names[1:]:
        publish_model({"name": name, "state": "checking"})
    checker.until(lambda: all(checker.model(name).state is ModelState.QUARANTINED for name in names))
    assert checker.starts() == MAX_FAILURES
    reference(WRITE)
    publish_model({"name": "ft:tiny::4", "state": "checking"})
    checker.until(lambda: checker.model("ft:tiny::4").state is ModelState.READY)


@pytest.mark.parametrize(
    "other",
    [
        {"chat_template": "{{ messages }}"},
        {"base_fingerprint": "c" * 64},
        {"sha256": "c" * 64},
    ],
    ids=["template", "base", "weights"],
)
def test_what_is_checked_otherwise_is_checked_itself(
    checker: Checker, publish_model: Publish, engine: Engine, other: dict[str, Any]
) -> None:
    checker.store.engines.set_residency(engine, "c" * 64, Residency.LOADED)
    publish_model({"name": "ft:tiny::2", "state": "checking", **other})
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)
    assert sorted(checker.judged) == [NAME, "ft:tiny::2"]
    assert "measured_as" not in checker.parity_of("ft:tiny::2")


def test_other_rows_are_another_check(checker: Checker, publish_model: Publish, data: Workspace) -> None:
    checker.until(lambda: checker.job().state is JobState.SUCCEEDED)
    data.file(FILE["id"]).write_text("{}\n")
    publish_model({"name": "ft:tiny::2", "state": "checking"})
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)
    assert checker.judged == [NAME, "ft:tiny::2"]
    more = checker.again(parity_rows=2)
    publish_model({"name": "ft:tiny::3", "state": "checking"})
    more.until(lambda: more.model("ft:tiny::3").state is ModelState.READY)
    assert checker.judged == [NAME, "ft:tiny::2", "ft:tiny::3"]


def test_a_requested_check_measures_again(
    checker: Checker, publish_model: Publish, verdict: Callable[[Any], None]
) -> None:
    publish_model({"name": "ft:tiny::2", "state": "checking"})
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)
    verdict(FAIL)
    checker.store.checks.request(checker.model("ft:tiny::2").id)
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.QUARANTINED)
    assert checker.judged == [NAME, "ft:tiny::2"]
    assert checker.model().state is ModelState.READY, "nobody asked about this name"


def test_what_qlora_loses_in_16_bits_is_told_on_the_job_and_the_adapter(
    checker: Checker, publish_model: Publish, verdict: Callable[[Any], None], reference: Callable[[str], None]
) -> None:
    reference(f"while [ ! -e {checker.data.path}/go ]; do sleep 0.05; done; {WRITE}")
    lost = {"loss": 1.25, "served_loss": 1.5, "difference": 0.25}
    verdict({**PASS, "four_bit": lost})
    publish_model({"name": "ft:tiny::2", "state": "checking", "method": "qlora"})
    model = checker.model("ft:tiny::2")
    checker.until(lambda: checker.starts() == 1)
    specs = [
        ParityFolder(checker.data.tmp / "parity" / id).read_spec() for id in (checker.model().id, model.id)
    ]
    assert [spec.four_bit for spec in specs] == [False, True]
    (checker.data.path / "go").touch()
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)
    assert checker.parity_of("ft:tiny::2")["four_bit"] == lost
    (told,) = [message for message in checker.messages(model.job_id or "") if "4-bit" in message]
    assert told.startswith(PASS["reason"].rstrip("."))
    assert "loss 1.2500 there, and 1.5000 on the 16-bit base that it is served on (+0.2500 nats" in told


def test_one_over_which_the_reference_crashes_keeps_no_other_from_its_verdict(
    checker: Checker, publish_model: Publish, engine: Engine, reference: Callable[[str], None]
) -> None:
    bad = checker.model().id
    reference(f'case "$folders" in *{bad}*) exit 1;; esac; {WRITE}')
    publish_model({"name": "ft:tiny::2", "sha256": "2" * 64, "state": "checking"})
    checker.store.engines.set_residency(engine, "2" * 64, Residency.LOADED)
    checker.until(lambda: checker.model().state is ModelState.QUARANTINED)
    checker.until(lambda: checker.model("ft:tiny::2").state is ModelState.READY)


def test_rows_are_held_out_ones_if_there_are_any(
    checker: Checker, data: Workspace, reference: Callable[[str], None]
) -> None:
    reference("sleep 60")
    checker.until(lambda: checker.starts() == 1)
    spec = checker.folder.read_spec()
    assert (spec.rows_from, spec.files, spec.base.context) == ("probes", (), 128), (
        "its file is not there any more"
    )
    checker.parity.stop()
    data.file(FILE["id"]).write_text("{}\n")
    second = checker.again()
    second.until(lambda: second.starts() == 2)
    spec = second.folder.read_spec()
    assert (spec.rows_from, [one.id for one in spec.files]) == ("training_file", [FILE["id"]])
