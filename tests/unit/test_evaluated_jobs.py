"""Jobs that ask for evaluations: what is evaluated when, what is told, and what becomes the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import update

from judged import end_evaluation, report_of
from rows import FILE, PRODUCT, Publish, create_job, engine_info
from tunewright.errors import InvalidRequest
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds.evaluation.models import DATA_FILE, WEIGHTS, EvaluationRequest, SuiteRequest
from tunewright.kinds.fine_tuning.evaluated import (
    EvaluatedFigure,
    EvaluateRequest,
    Measure,
    PointEvaluation,
    TrainingReport,
)
from tunewright.kinds.fine_tuning.evaluating import evaluate
from tunewright.kinds.fine_tuning.selecting import selected
from tunewright.metrics.verdicts import Limit, Reason, Verdict, overall
from tunewright.store.evaluated import EvaluatedStore
from tunewright.store.job_rows import message_event
from tunewright.store.limits import Limits
from tunewright.store.models import ModelStore
from tunewright.store.records import Job
from tunewright.store.states import Desired, EngineState, JobPhase, JobState, ModelState
from tunewright.store.store import Store
from tunewright.store.tables import jobs, models

BASE, LAST = "tiny", "ft:tiny::last"
ROWS = Measure(name="data", request=EvaluationRequest(models=[], sha256="0" * 64), sha256="0" * 64)
MMLU = Measure(
    name="mmlu", request=EvaluationRequest(models=[], suite=SuiteRequest(name="mmlu")), sha256="9" * 64
)
PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.NOT_ENOUGH_DATA


def wanted(*at: str, measures: Sequence[Measure] = (ROWS,), **more: Any) -> EvaluateRequest:
    return EvaluateRequest.model_validate({"asked": {}, "at": list(at), "measures": list(measures), **more})


def name(step: int) -> str:
    return f"{LAST}:ckpt-step-{step}"


@pytest.fixture
def ready(store: Store) -> None:
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/s", engine_info())
    store.engines.set_state(BASE, EngineState.READY)


def job_with(store: Store, asked: EvaluateRequest, **columns: Any) -> Job:
    return create_job(store, state=JobState.RUNNING, request={"evaluate": asked}, **columns)


def at(store: Store, job: Job) -> Job:
    found = store.jobs.get(job.id)
    assert found is not None
    return found


def report(store: Store, job: Job) -> TrainingReport:
    found = at(store, job).report
    assert isinstance(found, TrainingReport)
    return found


def go_on(store: Store, job: Job) -> list[Job]:
    """What the scheduler does again and again. Returns the evaluations that have not ended."""
    for _ in range(3):
        evaluate(store, at(store, job))
    return [
        one for one in store.jobs.list(kind="evaluation", after=None, limit=99)[0] if not one.state.is_final
    ]


def messages(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id, after=None, limit=99, ascending=True)[0]]


def publish(publish_model: Publish, job: Job, *steps: int, **changes: Any) -> None:
    rows = [{"name": LAST, "sha256": "0" * 64, **changes}]
    rows += [
        {
            "name": name(step),
            "sha256": str(step) * 64,
            "checkpoint_step": step,
            "desired": "unloaded",
            **changes,
        }
        for step in steps
    ]
    assert publish_model(*rows, job=job)


@pytest.mark.each_database
def test_checkpoints_are_evaluated_one_after_another_and_the_best_is_the_model(
    store: Store, ready: None, publish_model: Publish
) -> None:
    job = job_with(store, wanted("before", "checkpoints", "end", select="best"))
    [base] = go_on(store, job)
    assert isinstance(base.request, EvaluationRequest)
    assert (base.base, base.request.job) == (NO_BASE, job.id)
    assert [one.name for one in base.request.models] == [BASE]
    assert base.file(DATA_FILE) is None, "the job has no file here"
    end_evaluation(store, base.id, report_of(BASE, (0.4, 0.3, 0.5)))
    assert go_on(store, job) == [], "the job has not made anything yet"

    publish(publish_model, job, 4, 8)
    assert (at(store, job).phase, at(store, job).model) == (JobPhase.EVALUATE, None)
    with pytest.raises(InvalidRequest, match="pause these"):
        store.jobs.pause(job.id)
    for model, value in ((name(4), 0.7), (name(8), 0.9), (LAST, 0.8)):
        [one] = go_on(store, job)
        assert isinstance(one.request, EvaluationRequest)
        assert [asked.name for asked in one.request.models] == [model, BASE]
        assert one.weights(WEIGHTS) == [store.models.get(model).sha256]  # type: ignore[union-attr]
        gap = (value - 0.4, value - 0.5, value - 0.3)
        end_evaluation(
            store, one.id, report_of(model, (value, value - 0.1, value + 0.1), against={BASE: gap})
        )

    assert go_on(store, job) == []
    ended = at(store, job)
    assert (ended.state, ended.model) == (JobState.SUCCEEDED, name(8))
    assert (report(store, job).step, report(store, job).verdict) == (8, None)
    listed = {one.name: one.desired for one in store.models.list()[0]}
    assert listed == {LAST: "unloaded", name(4): "unloaded", name(8): "loaded"}
    first, second = store.jobs.checkpoints(job.id, after=None, limit=9)[0]
    assert first.metrics == {
        "train_loss": 1.0,
        "eval_accuracy": 0.9,
        "eval_accuracy_gain": pytest.approx(0.5),
    }
    assert second.metrics["eval_accuracy"] == 0.7
    told = "\n".join(messages(store, job))
    assert told.count("Evaluated on the rows at step 8") == 1
    assert "accuracy 0.9 (0.8 to 1), +0.5 (+0.4 to +0.6) against tiny" in told
    assert f"The model of the job is {name(8)}. It is the best of the 3 of 3 that were measured" in told
    store.models.want(name(8), Desired.UNLOADED)
    assert [one.name for one in store.models.idle_checkpoints()] == [name(4)], "that of a job is not removed"


@pytest.mark.each_database
def test_a_failed_evaluation_fails_no_job(store: Store, ready: None, publish_model: Publish) -> None:
    job = job_with(store, wanted("before", "checkpoints", "end", measures=[ROWS, MMLU]))
    publish(publish_model, job, 4)
    for _ in range(6):
        [one] = go_on(store, job)
        end_evaluation(store, one.id, None, JobState.FAILED)

    assert go_on(store, job) == []
    ended = at(store, job)
    assert (ended.state, ended.model) == (JobState.SUCCEEDED, LAST)
    points = report(store, job).points
    assert [(point.at, point.measure, point.status) for point in points] == [
        (place, measure, "failed")
        for place in ("before", "checkpoint", "end")
        for measure in ("data", "mmlu")
    ]
    assert {point.why for point in points} == {"nothing was answered"}
    assert report(store, job).verdict is OPEN, "the limits of the suite were not looked at"
    assert sum("was not evaluated on" in text for text in messages(store, job)) == 6


def test_the_base_is_measured_once_for_all_jobs_with_the_same_rows(
    store: Store, ready: None, publish_model: Publish
) -> None:
    first, second = (job_with(store, wanted("before"), fingerprint=of) for of in "ab")
    [base] = go_on(store, first)
    assert go_on(store, second) == [base], "no other one is made"
    end_evaluation(store, base.id, report_of(BASE))
    go_on(store, first)
    go_on(store, second)
    assert [report(store, job).points[0].evaluation for job in (first, second)] == [base.id, base.id]

    other = ROWS.model_copy(update={"sha256": "1" * 64})
    third = job_with(store, wanted("before", measures=[other]), fingerprint="c")
    [made] = go_on(store, third)
    assert made.id != base.id, "other rows are measured"


def test_a_cancelled_job_takes_its_evaluations_with_it_and_leaves_that_of_the_base(
    store: Store, ready: None, publish_model: Publish
) -> None:
    job = job_with(store, wanted("before", "end"))
    [base] = go_on(store, job)
    publish(publish_model, job)
    end_evaluation(store, base.id, report_of(BASE))
    [one] = go_on(store, job)

    store.jobs.cancel(job.id)

    assert at(store, one).state is JobState.CANCELLED
    assert at(store, base).state is JobState.SUCCEEDED
    assert at(store, job).state is JobState.CANCELLED
    assert store.models.get(LAST) is not None, "what was checked stays listed"


def test_what_is_not_checked_is_not_evaluated(store: Store, ready: None, publish_model: Publish) -> None:
    """A checkpoint is loaded, and so checked, first; one that is quarantined is told, and not asked."""
    job = job_with(store, wanted("checkpoints", select="best"))
    publish(publish_model, job, 4, 8)
    waits, bad = (store.models.get(name(step)) for step in (4, 8))
    assert waits is not None
    assert bad is not None
    set_state(store, waits.id, ModelState.CHECKING)
    set_state(store, bad.id, ModelState.QUARANTINED)
    assert go_on(store, job) == []
    assert store.models.get(waits.id).desired == "loaded"  # type: ignore[union-attr]
    set_state(store, waits.id, ModelState.READY)
    [one] = go_on(store, job)
    end_evaluation(store, one.id, report_of(name(4)))
    assert go_on(store, job) == []
    assert at(store, job).model == name(4)
    assert "it is quarantined" in str(report(store, job).points[1].why)


def test_the_last_state_is_not_evaluated_twice(store: Store, ready: None, publish_model: Publish) -> None:
    job = job_with(store, wanted("checkpoints", "end", select="best"))
    publish(publish_model, job, 4, sha256="5" * 64)
    [one] = go_on(store, job)
    end_evaluation(store, one.id, report_of(name(4)))
    assert go_on(store, job) == []
    assert at(store, job).model == LAST
    assert [point.evaluation for point in report(store, job).points] == [one.id, one.id]


def set_state(store: Store, id: str, state: ModelState) -> None:
    with store.database.begin() as connection:
        connection.execute(update(models).where(models.c.id == id).values(state=state))


def point(
    step: int | None, value: float | None, verdict: Verdict | None = None, measure: str = "data", **more: Any
) -> PointEvaluation:
    figure = EvaluatedFigure(metric=more.pop("metric", "accuracy"), value=value, low=value, high=value)
    return PointEvaluation(
        at="end" if step is None else "checkpoint", step=step, model=LAST if step is None else name(step),
        measure=measure, evaluation="eval-1", status="succeeded", why=None, forgotten=None, verdict=verdict,
        figures=[figure] if value is not None else [], reasons=[f"{measure} at {step}"] if verdict else [], **more,
    )  # fmt: skip


LIMITED = ROWS.model_copy(
    update={"request": EvaluationRequest(models=[], require=[Limit(metric="accuracy", min=0.5)])}
)


@pytest.mark.parametrize(
    ("points", "expected", "words"),
    [
        ([point(4, 0.9, FAIL), point(8, 0.7, PASS), point(None, 0.8, OPEN)], (8, PASS), "best of the 1 of 3 that keep"),
        ([point(4, 0.7, OPEN), point(8, 0.9, FAIL), point(None, 0.6, OPEN)], (4, OPEN), "do not tell"),
        ([point(4, 0.9, FAIL), point(8, 0.8, FAIL), point(None, 0.7, FAIL)], (None, FAIL), "None of 3 checkpoints"),
        ([point(4, 0.9, PASS), point(8, 0.9, PASS), point(None, 0.9, PASS)], (4, PASS), "best of the 3 of 3 that keep"),
        ([point(4, None), point(None, None)], (None, OPEN), "No checkpoint was measured"),
    ],
    ids=["keeps", "open", "none", "earliest", "unmeasured"],
)  # fmt: skip
def test_the_best_checkpoint_keeps_the_limits(
    points: list[PointEvaluation], expected: tuple[int | None, Verdict], words: str
) -> None:
    found = selected(wanted("checkpoints", "end", measures=[LIMITED], select="best"), points, LAST)
    assert (found.step, found.verdict) == expected
    assert words in found.why


def test_a_suite_that_was_forgotten_excludes_a_checkpoint_that_is_better_at_the_task() -> None:
    asked = wanted("checkpoints", "end", measures=[ROWS, MMLU], select="best")
    points = [point(4, 0.6), point(4, 0.3, PASS, "mmlu"), point(8, 0.9), point(8, 0.1, FAIL, "mmlu")]
    assert selected(asked, points, LAST).step == 4
    assert selected(asked.model_copy(update={"select": "last"}), points, LAST).model == LAST


def test_less_of_perplexity_is_better() -> None:
    points = [point(4, 30.0, metric="perplexity"), point(8, 20.0, metric="perplexity")]
    assert selected(wanted("checkpoints", select="best", metric="perplexity"), points, LAST).step == 8


def test_limits_and_what_was_forgotten_are_taken_from_the_report(
    store: Store, ready: None, publish_model: Publish
) -> None:
    job = job_with(store, wanted("end", measures=[MMLU]))
    publish(publish_model, job)
    [one] = go_on(store, job)
    found = report_of(LAST, against={BASE: (-0.1, -0.2, 0.0)})
    values = {"metric": "accuracy", "value": 0.2, "low": 0.1, "high": 0.3, "limit": 0.05}
    reason = Reason(name="forgetting", verdict=FAIL, message="mmlu is 20 % below that of tiny", **values)
    found.judgement = overall([reason])
    end_evaluation(store, one.id, found)
    go_on(store, job)
    [told] = report(store, job).points
    assert told.forgotten is not None
    assert (told.forgotten.value, told.verdict, told.reasons) == (0.2, FAIL, [reason.message])
    assert report(store, job).verdict is FAIL
    warned = [event for event in store.jobs.events(job.id, after=None, limit=99)[0] if event.level == "warn"]
    assert len(warned) == 2, "the evaluation, and the model"


assert PRODUCT["base"] == BASE
assert FILE["sha256"] == ROWS.sha256


def test_what_was_found_before_the_check_of_the_model_is_told_once(
    store: Store, ready: None, publish_model: Publish
) -> None:
    """The phase of the check must not take away what is known of the base."""
    job = job_with(store, wanted("before", "end"))
    [base] = go_on(store, job)
    end_evaluation(store, base.id, report_of(BASE, (0.4, 0.3, 0.5)))
    go_on(store, job)
    publish(publish_model, job, state="checking")
    assert at(store, job).phase is JobPhase.CHECK
    assert [point.at for point in report(store, job).points] == ["before"]

    model = store.models.get(LAST)
    assert model is not None
    store.checks.record(model.id, {}, failure=None, event=message_event("checked"))
    [last] = go_on(store, job)
    end_evaluation(store, last.id, report_of(LAST, against={BASE: (0.5, 0.4, 0.6)}))
    go_on(store, job)
    assert [point.at for point in report(store, job).points] == ["before", "end"]
    assert sum("before training" in text for text in messages(store, job)) == 1


@pytest.mark.each_database
def test_a_cancelled_job_leaves_the_evaluation_of_the_base_to_others_alone(store: Store, ready: None) -> None:
    first, second = (job_with(store, wanted("before"), fingerprint=of) for of in "ab")
    [base] = go_on(store, first)
    store.jobs.cancel(first.id)
    assert go_on(store, second) == [base], "the other job uses it"
    store.jobs.cancel(second.id)

    third = job_with(store, wanted("before", measures=[MMLU]), fingerprint="c")
    made = next(one for one in go_on(store, third) if one != base)
    store.jobs.cancel(third.id)
    assert at(store, made).state is JobState.CANCELLED, "no job is left that could use it"


def test_a_job_that_is_cancelled_just_now_gets_no_further_evaluation(
    store: Store, ready: None, publish_model: Publish
) -> None:
    job = job_with(store, wanted("end"))
    publish(publish_model, job)
    seen = at(store, job)  # by the scheduler, before the user cancels
    store.jobs.cancel(job.id)
    evaluate(store, seen)
    assert go_on(store, seen) == []


@pytest.mark.each_database
def test_evaluations_that_a_job_waits_for_come_first_and_its_own_place_is_theirs(
    store: Store, ready: None, publish_model: Publish
) -> None:
    """Also in a project in which one job may run at a time: the one that waits would wait for ever."""
    store.projects.modify("default", limits=Limits(running_jobs=1))
    job = job_with(store, wanted("end"))
    publish(publish_model, job)
    later = create_job(store, state=JobState.QUEUED, fingerprint="later")
    [one] = go_on(store, job)
    with store.database.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == one.id).values(state=JobState.QUEUED))
    claimed = store.jobs.claim("cpu", [BASE, NO_BASE])
    assert claimed is not None
    assert claimed.id == one.id, "before the job that was queued earlier"
    assert store.jobs.claim("cuda:0", [BASE, NO_BASE]) is None, "one runs"
    store.jobs.cancel(job.id)
    store.jobs.release(one.id)
    assert (found := store.jobs.claim("cpu", [BASE, NO_BASE])) is not None
    assert found.id == later.id


class Killed(BaseException):
    """The scheduler's process is gone."""


def test_a_scheduler_that_dies_at_any_of_its_writes_doubles_and_loses_nothing(
    store: Store, ready: None, publish_model: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before and after each write of a whole job, one job for each; another scheduler goes on."""
    writes = [*((EvaluatedStore, name) for name in ("ensure", "record", "end")), (ModelStore, "want")]
    left = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            found = write(*arguments, **named)
            left -= 1
            if left == 0:
                raise Killed
            return found

        return counted

    for owner, called in writes:
        monkeypatch.setattr(owner, called, dying(getattr(owner, called)))

    def run(number: int) -> bool:
        """A job whose scheduler dies at the place `number`; whether there was such a place."""
        nonlocal left
        left, died = number, False
        rows = ROWS.model_copy(update={"sha256": f"{number:064x}"})
        asked = wanted("before", "checkpoints", "end", measures=[rows], select="best")
        job = job_with(store, asked, fingerprint=str(number))
        last = f"ft:tiny::{number}"
        for _ in range(12):
            now = at(store, job)
            if now.state.is_final:
                break
            try:
                evaluate(store, now)
            except Killed:
                died = True
                continue
            unfinished = store.jobs.in_states(JobState.VALIDATING_FILES)
            for one in (one for one in unfinished if one.kind == "evaluation"):
                assert isinstance(one.request, EvaluationRequest)
                end_evaluation(store, one.id, report_of(one.request.models[0].name))
            if not unfinished and now.phase is JobPhase.PREPARE:
                names = [last, f"{last}:ckpt-step-4"]
                made = [
                    {"name": name, "sha256": f"{number:032x}{step:032x}"} for step, name in enumerate(names)
                ]
                assert publish_model(
                    made[0], made[1] | {"checkpoint_step": 4, "desired": "unloaded"}, job=job
                )
        assert (at(store, job).state, at(store, job).model) == (JobState.SUCCEEDED, f"{last}:ckpt-step-4")
        points = report(store, job).points
        assert [one.at for one in points] == ["before", "checkpoint", "end"]
        every = store.jobs.list(kind="evaluation", after=None, limit=999)[0]
        of_job = [one.id for one in every if asked_by(one) == job.id]
        assert sorted(of_job) == sorted(str(one.evaluation) for one in points), "each once"
        told = messages(store, job)
        assert sum(text.startswith("Evaluated on") for text in told) == 3
        assert sum(text.startswith("The model of the job is") for text in told) == 1
        return died

    places = 0
    while run(places + 1):
        places += 1
    assert places == 2 * (3 + 3 + 2), "an evaluation and what it found; loading a checkpoint, and the end"


def asked_by(evaluation: Job) -> str | None:
    """The job that has asked for it."""
    assert isinstance(evaluation.request, EvaluationRequest)
    return evaluation.request.job
