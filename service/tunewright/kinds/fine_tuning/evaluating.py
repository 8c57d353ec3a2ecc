"""Makes the evaluations that a fine-tuning job asks for, takes in what they have found, and ends the job with a model.

All is derived from what the store has: a scheduler that starts again goes on where the last one was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.errors import TunewrightError
from tunewright.evaluator.report import EvaluationReport
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds.evaluation.models import DATA_FILE, WEIGHTS, EvaluatedModel, EvaluationRequest
from tunewright.kinds.fine_tuning.evaluated import (
    EVALUATED_FILE,
    JUDGE,
    OF_DATA,
    EvaluatedFigure,
    EvaluateRequest,
    Forgotten,
    Measure,
    PointEvaluation,
    TrainingReport,
)
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.kinds.fine_tuning.selecting import selected
from tunewright.metrics.verdicts import Verdict, words
from tunewright.store.job_rows import OF_BASE, OF_PRODUCTS, Event, message_event
from tunewright.store.records import Engine, Job, JobInput, NewJob, TunedModel
from tunewright.store.states import Desired, JobPhase, JobState, ModelState
from tunewright.store.store import Store

EVALUATION = "evaluation"
"""The name of the kind, which this one does not import."""


@dataclass(frozen=True)
class _Wanted:
    """One evaluation that a job needs."""

    at: Literal["before", "checkpoint", "end"]
    measure: Measure
    model: TunedModel | None = None
    """None: the base."""

    @property
    def step(self) -> int | None:
        return self.model.checkpoint_step if self.model is not None else None

    def name(self, base: str) -> str:
        """The name of the model."""
        return self.model.name if self.model is not None else base

    @property
    def key(self) -> str:
        if self.model is None:
            return f"{OF_BASE}{self.measure.name}"
        return f"{OF_PRODUCTS}{self.measure.name}:{self.step or 'end'}"


def evaluate(store: Store, job: Job) -> None:
    """Do what can be done now for the evaluations of a job that has not ended. Never blocks for long; repeated until
    the job has ended."""
    request = job.request
    assert isinstance(request, FineTuningRequest)
    if request.evaluate is None:
        return
    report = job.report if isinstance(job.report, TrainingReport) else TrainingReport(points=[])
    products = store.evaluated.products(job.id) if job.phase is JobPhase.EVALUATE else []
    for one in _wanted(request.evaluate, products):
        if _recorded(report, one, job) is not None:
            continue
        try:
            point = _found(store, job, one, report, products)
        except TunewrightError as error:  # an input is gone
            point = _without_figures(job, one, None, "failed", str(error))
        if point is None:
            return
        report = report.model_copy(update={"points": [*report.points, point]})
        if not store.evaluated.record(job.id, report, _event(job, point), {point.model: metrics_of(point)}):
            return
    if job.phase is JobPhase.EVALUATE:
        _end(store, job, request.evaluate, report, products)


def _wanted(request: EvaluateRequest, products: Sequence[TunedModel]) -> Iterator[_Wanted]:
    """The evaluations in the order in which they are made; those of `products` where these are there."""
    if "before" in request.at:
        yield from (_Wanted("before", measure) for measure in request.measures)
    for model in products[1:] if "checkpoints" in request.at else ():
        yield from (_Wanted("checkpoint", measure, model) for measure in request.measures)
    for model in products[:1] if "end" in request.at else ():
        yield from (_Wanted("end", measure, model) for measure in request.measures)


def _recorded(report: TrainingReport, one: _Wanted, job: Job) -> PointEvaluation | None:
    wanted = (one.at, one.measure.name, one.name(job.base))
    return next((point for point in report.points if (point.at, point.measure, point.model) == wanted), None)


def _found(
    store: Store, job: Job, one: _Wanted, report: TrainingReport, products: Sequence[TunedModel]
) -> PointEvaluation | None:
    """What the evaluation has found; None while it has not ended."""
    if one.at == "end" and (known := _of_same_weights(one, report, products)) is not None:
        return known.model_copy(update={"at": "end", "step": None, "model": one.name(job.base)})
    made = store.evaluated.find(job.id, one.key)
    if made is None:
        engine = store.engines.get(job.base)
        why = _why_not(engine, job, one)
        if why is not None:
            return _without_figures(job, one, None, "failed", why)
        if engine is None or engine.info is None or not _is_checked(store, one):
            return None
        made = store.evaluated.ensure(
            evaluation_of(job, one.measure, engine, one.model, one.key).by_key(job.api_key_id), job.id
        )
    if made is None or not made.state.is_final:
        return None
    if made.state is JobState.CANCELLED:
        return _without_figures(job, one, made.id, "cancelled", "it was cancelled")
    if made.state is JobState.FAILED or not isinstance(made.report, EvaluationReport):
        why = made.error.message if made.error is not None else "it has no report"
        return _without_figures(job, one, made.id, "failed", why)
    return _with_figures(job, one, made.id, made.report)


def _of_same_weights(
    one: _Wanted, report: TrainingReport, products: Sequence[TunedModel]
) -> PointEvaluation | None:
    """What was found of a checkpoint that is the last state of the training."""
    alike = _alike(products)
    of_measure = (point for point in report.points if point.measure == one.measure.name)
    return next((point for point in of_measure if point.at == "checkpoint" and point.model in alike), None)


def _alike(products: Sequence[TunedModel]) -> set[str]:
    return {model.name for model in products[1:] if model.sha256 == products[0].sha256}


def _why_not(engine: Engine | None, job: Job, one: _Wanted) -> str | None:
    """Why the model cannot be evaluated, whatever is waited for."""
    if engine is None:
        return f"{job.base} is not served here any more"
    if one.model is not None and one.model.state is ModelState.QUARANTINED:
        reason = (one.model.parity or {}).get("reason", "it failed its parity check")
        return f"it is quarantined: {reason}"
    if one.model is not None and one.model.state is ModelState.MERGE_ONLY:
        return "it is an adapter that vLLM does not serve"
    return None


def _is_checked(store: Store, one: _Wanted) -> bool:
    """Whether the model may be asked; has it loaded, which has it checked."""
    if one.model is None:
        return True
    if one.model.desired is not Desired.LOADED:
        store.models.want(one.model.id, Desired.LOADED)
    return one.model.state is ModelState.READY


def evaluation_of(
    job: Job | NewJob, measure: Measure, engine: Engine, model: TunedModel | None, key: str
) -> NewJob:
    """The evaluation of a model of the job against its base or, without a model, of the base alone. That of the base is
    the same for all jobs that ask for it."""
    assert engine.info is not None, "it was ready"
    assert isinstance(job.request, FineTuningRequest) and job.request.evaluate is not None
    seed = job.request.evaluate.seed
    base = EvaluatedModel(
        asked=job.base, name=job.base, engine=engine.name, content=engine.info.fingerprint, has_weights=False
    )
    request, fingerprint = measure.request, ""
    judges = [one.sha256 for one in job.inputs if one.role == JUDGE] if request.judge is not None else []
    if model is None:
        request = _of_base(request).model_copy(update={"models": [base]})
        like = request.model_dump(mode="json", exclude={"filename", "job"})
        content = json.dumps([like, measure.sha256, seed], sort_keys=True)
        fingerprint, judges = hashlib.sha256(content.encode()).hexdigest(), []
    else:
        ours = EvaluatedModel(
            asked=model.name, name=model.name, engine=engine.name, content=model.sha256, has_weights=True
        )
        request = request.model_copy(update={"models": [ours, base]})
    files = [one.file_id for one in job.inputs if one.role == EVALUATED_FILE] if not request.suite else []
    return NewJob(
        kind=EVALUATION,
        base=NO_BASE,
        request=request,
        seed=seed,
        inputs=(
            *(JobInput(DATA_FILE, file_id=id) for id in files),
            *(JobInput(WEIGHTS, sha256=sha256) for sha256 in [model.sha256 if model else None, *judges] if sha256),
        ),
        idempotency_key=key,
        fingerprint=fingerprint,
    )  # fmt: skip


def _of_base(request: EvaluationRequest) -> EvaluationRequest:
    """A judge compares, and there is nothing to compare the base with."""
    if request.judge is None:
        return request
    metrics = [name for name in request.metrics or () if name != "judge"] or None
    require = [limit for limit in request.require or () if limit.metric != "judge"] or None
    return request.model_copy(update={"judge": None, "metrics": metrics, "require": require})


def evaluations_before(job: NewJob, engine: Engine | None) -> tuple[NewJob, ...]:
    """Those of the base, to be created before the job: then they come first where both need the same device. None where
    the engine has not been ready yet: then they are made when it is."""
    assert isinstance(job.request, FineTuningRequest)
    request = job.request.evaluate
    if request is None or engine is None or engine.info is None:
        return ()
    return tuple(
        evaluation_of(job, one.measure, engine, None, one.key)
        for one in _wanted(request, [])
        if one.at == "before"
    )


def _without_figures(
    job: Job, one: _Wanted, id: str | None, status: Literal["failed", "cancelled"], why: str
) -> PointEvaluation:
    return PointEvaluation(
        at=one.at,
        step=one.step,
        model=one.name(job.base),
        measure=one.measure.name,
        evaluation=id,
        status=status,
        why=why,
        figures=[],
        forgotten=None,
        verdict=None,
        reasons=[],
    )


def _with_figures(job: Job, one: _Wanted, id: str, report: EvaluationReport) -> PointEvaluation:
    gains = {compared.metric: compared for compared in report.comparisons}
    figures = []
    for figure in report.models[0].figures:
        gain = gains.get(figure.metric)
        compared = {"gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high} if gain else {}
        values = figure.model_dump(include={"metric", "value", "low", "high"})
        figures.append(EvaluatedFigure(**values, **compared))
    judgement = report.judgement if one.model is not None else None
    reasons = judgement.reasons if judgement is not None else []
    lost = next((reason for reason in reasons if reason.name == "forgetting"), None)
    return PointEvaluation(
        at=one.at,
        step=one.step,
        model=one.name(job.base),
        measure=one.measure.name,
        evaluation=id,
        status="succeeded",
        why=None,
        figures=figures,
        forgotten=Forgotten(value=lost.value, low=lost.low, high=lost.high, limit=lost.limit)
        if lost
        else None,
        verdict=judgement.verdict if judgement is not None else None,
        reasons=[reason.message for reason in reasons],
    )


def metrics_of(point: PointEvaluation) -> dict[str, float]:
    """What is told in the metrics of a checkpoint: of rows `eval_<metric>` and `eval_<metric>_gain`, of a suite
    `eval_<suite>` and `eval_<suite>_forgotten`."""
    found: dict[str, float | None] = {}
    for figure in point.figures if point.measure == OF_DATA else point.figures[:1]:
        name = f"eval_{figure.metric if point.measure == OF_DATA else point.measure}"
        found[name] = figure.value
        if point.measure == OF_DATA:
            found[f"{name}_gain"] = figure.gain
    if point.forgotten is not None:
        found[f"eval_{point.measure}_forgotten"] = point.forgotten.value
    return {name: value for name, value in found.items() if value is not None}


def _event(job: Job, point: PointEvaluation) -> Event:
    place = {"before": "before training", "end": "at the end", "checkpoint": f"at step {point.step}"}[
        point.at
    ]
    what = "the rows" if point.measure == OF_DATA else point.measure
    data: dict[str, Any] = {"data": {"evaluation": point.model_dump(mode="json")}}
    if point.status != "succeeded":
        text = f"{point.model} was not evaluated on {what} {place}: {point.why}. The job goes on"
        return message_event(text, level="warn") | data
    shown = ", ".join(_shown(figure, job.base) for figure in point.figures)
    verdict = ""
    if point.verdict is not None:
        verdict = f". Limits: {words(point.verdict)} ({'; '.join(point.reasons)})"
    text = f"Evaluated on {what} {place}, {point.model}: {shown}{verdict} ({point.evaluation})"
    return message_event(text, level="warn" if point.verdict is Verdict.FAIL else "info") | data


def _shown(figure: EvaluatedFigure, base: str) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"{figure.metric} -"
    text = f"{figure.metric} {figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"
    if figure.gain is None or figure.gain_low is None or figure.gain_high is None:
        return text
    return f"{text}, {figure.gain:+.4g} ({figure.gain_low:+.4g} to {figure.gain_high:+.4g}) against {base}"


def _end(
    store: Store, job: Job, request: EvaluateRequest, report: TrainingReport, products: Sequence[TunedModel]
) -> None:
    chosen = selected(request, report.points, products[0].name, _alike(products))
    values = {"model": chosen.model, "step": chosen.step, "verdict": chosen.verdict, "why": chosen.why}
    report = report.model_copy(update=values)
    verdict = f" (limits: {words(chosen.verdict)})" if chosen.verdict is not None else ""
    text = f"The model of the job is {chosen.model}{verdict}. {chosen.why}"
    event = message_event(text, level="warn" if chosen.verdict is Verdict.FAIL else "info")
    store.evaluated.end(
        job.id, chosen.model, report, [event | {"data": report.model_dump(mode="json", exclude={"points"})}]
    )
