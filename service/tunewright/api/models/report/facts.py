"""Gathers what is known of a model: its training, data, checks, evaluations, gates and ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.api.files.report import Options, report_on
from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, NotFound, TunewrightError, quoted
from tunewright.evaluator.report import EvaluationReport
from tunewright.kinds.evaluation.kind import request_of
from tunewright.kinds.fine_tuning.models import TRAINING_FILE, FineTuningRequest
from tunewright.metrics.verdicts import TargetVerdict
from tunewright.plan.defaults import Resolved
from tunewright.registry.bases import BaseUnavailable, inspect_base
from tunewright.rows.report.models import DataReport
from tunewright.store.records import AliasVersion, Checkpoint, Engine, FileRecord, Job, TunedModel
from tunewright.store.states import ModelKind

_MOST_EVALUATIONS, _MOST_ANCESTORS = 20, 50


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of the model that has succeeded."""

    job: Job
    report: EvaluationReport

    @property
    def data(self) -> tuple[str, str]:
        """The name of its file, and the hash of that; of a suite, or of latency, what it is."""
        request = request_of(self.job)
        return request.filename or self.report.why, request.sha256


@dataclass(frozen=True)
class Judged:
    """What the gate of an alias has said of the model."""

    version: AliasVersion
    verdict: TargetVerdict


@dataclass(frozen=True)
class Facts:
    """What is known of a base (`model` is None) or of a tuned model."""

    name: str
    model: TunedModel | None
    engine: Engine | None
    base_hub_id: str | None
    job: Job | None
    """The one that has made it, if it is still listed."""
    losses: dict[str, list[tuple[float, float]]]
    checkpoints: Sequence[Checkpoint]
    training_file: FileRecord | None
    data: DataReport | None
    no_data: str | None
    """Why there is no report on its training data."""
    evaluations: Sequence[Evaluated]
    gates: Sequence[Judged]
    aliases: Sequence[str]
    ancestors: Sequence[TunedModel]
    """The model from which training continued, the one before that, and so on; of an export its sources."""


def gather(context: ServiceContext, asked: str) -> Facts:
    """Raises NotFound, and InvalidRequest for an alias with several targets. May take long: rows are counted."""
    name = _target(context, asked)
    model, engine, _ = context.store.models.resolve(name)
    if model is None and engine is None:
        raise NotFound(f"No such model: {quoted(asked)}.", param="model", code="model_not_found")
    name = model.name if model is not None else name
    is_adapter = model is not None and model.kind is ModelKind.ADAPTER
    served = engine.info.fingerprint if engine is not None and engine.info is not None else None
    content = model.sha256 if model is not None and is_adapter else served
    job = context.store.jobs.get(model.job_id) if model is not None and model.job_id else None
    training_file, data, no_data = _data(context, model, job)
    return Facts(
        name=name,
        model=model,
        engine=engine,
        base_hub_id=_hub_id(context, model.base if model is not None else name),
        job=job,
        losses=_losses(context, job) if job is not None else {},
        checkpoints=context.store.jobs.checkpoints(job.id, after=None, limit=1000)[0]
        if job is not None
        else (),
        training_file=training_file,
        data=data,
        no_data=no_data,
        evaluations=_evaluations(context, content) if content is not None else (),
        gates=_gates(context, name),
        aliases=context.store.aliases.using(name),
        ancestors=_ancestors(context, model) if model is not None else (),
    )


def _target(context: ServiceContext, asked: str) -> str:
    alias = context.store.aliases.get(asked)
    if alias is None:
        return asked
    if len(alias.targets) > 1:
        names = ", ".join(target.model for target in alias.targets)
        raise InvalidRequest(
            f"{asked} is an alias of several models: name one of {names}.",
            param="model",
            code="alias_is_split",
        )
    return alias.targets[0].model


def _hub_id(context: ServiceContext, base: str) -> str | None:
    for one in context.settings.models.bases:
        if one.name == base:
            try:
                return inspect_base(one).hub_id
            except BaseUnavailable:
                return None
    return None


def _losses(context: ServiceContext, job: Job) -> dict[str, list[tuple[float, float]]]:
    """Those of the events, which are kept for as long as the operator says."""
    found: dict[str, list[tuple[float, float]]] = {"training loss": [], "validation loss": []}
    events, _ = context.store.jobs.events(job.id, after=None, limit=10**6, ascending=True)
    for event in events:
        data = event.data or {}
        for name, key in (("training loss", "train_loss"), ("validation loss", "valid_loss")):
            if event.type == "metrics" and isinstance(data.get(key), int | float) and "step" in data:
                found[name].append((float(data["step"]), float(data[key])))
    return {name: curve for name, curve in found.items() if curve}


def _data(
    context: ServiceContext, model: TunedModel | None, job: Job | None
) -> tuple[FileRecord | None, DataReport | None, str | None]:
    if job is None or not isinstance(job.request, FineTuningRequest):
        return None, None, None
    id = job.file(TRAINING_FILE)
    record = context.store.files.get(id) if id is not None else None
    if record is None or id is None:
        return None, None, "the file is no longer here"
    known = {base.name for base in context.bases()}
    in_tokens = job.base in known
    options = Options(
        model=job.base if in_tokens else None,
        max_length=job.resolved.max_length if in_tokens and isinstance(job.resolved, Resolved) else None,
        chat_template=job.request.chat_template if in_tokens else None,
        data=job.request.data,
    )
    try:
        return record, report_on(context, id, options)[1], None
    except TunewrightError as error:
        return record, None, error.message


def _evaluations(context: ServiceContext, content: str) -> list[Evaluated]:
    jobs = context.store.aliases.evaluations(content, _MOST_EVALUATIONS)
    return [Evaluated(job, job.report) for job in jobs if isinstance(job.report, EvaluationReport)]


def _gates(context: ServiceContext, name: str) -> list[Judged]:
    return [
        Judged(version, verdict)
        for version in context.store.aliases.judged()
        if version.gate is not None
        for verdict in version.gate.targets
        if verdict.model == name
    ]


def _ancestors(context: ServiceContext, model: TunedModel) -> list[TunedModel]:
    found: list[TunedModel] = []
    waiting = _sources(model)
    while waiting and len(found) < _MOST_ANCESTORS:
        sha256 = waiting.pop(0)
        source = context.store.models.by_sha256(sha256)
        if source is not None and all(source.sha256 != one.sha256 for one in (model, *found)):
            found.append(source)
            waiting += _sources(source)
    return found


def _sources(model: TunedModel) -> list[str]:
    """Hashes of the weights of which the model was made."""
    lineage = model.lineage
    if lineage is None:
        return []
    parents = [lineage.parent_sha256] if lineage.parent_sha256 else []
    return parents + [one["sha256"] for one in lineage.models or [] if one.get("sha256")]
