"""The gate of an alias: whether models have shown in evaluations what it requires of its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunewright.api.aliases.schemas import JudgedTargetObject, RequireBody, RequiredEvaluationBody
from tunewright.api.evaluations.creation import resolved_model
from tunewright.api.files.find import find_file
from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, NotFound
from tunewright.evaluator.report import EvaluationReport
from tunewright.evaluator.verdict import judge
from tunewright.kinds.data import DataOptions
from tunewright.kinds.evaluation.kind import request_of
from tunewright.metrics.verdicts import Judgement, Limit, Reason, TargetVerdict, Verdict, overall
from tunewright.metrics.win_rates import win_rate
from tunewright.registry.aliases import Alias, AliasGuard, AliasRequirement, RequiredEvaluation
from tunewright.store.alias_gates import Evidence
from tunewright.store.records import Job

Found = tuple[Judgement, str | None]
"""A judgement, and the evaluation on which it is founded."""


def requirement_of(context: ServiceContext, body: RequireBody) -> AliasRequirement:
    """The requirement that a request sets. Raises NotFound, and InvalidRequest where the file is another one by now."""
    limits = body.model_dump(include={"min", "max", "max_drop", "no_forgetting"})
    return AliasRequirement(_evaluation(context, body.evaluation) if body.evaluation else None, **limits)


def _evaluation(context: ServiceContext, body: RequiredEvaluationBody) -> RequiredEvaluation:
    param = "require.evaluation.data"
    try:
        sha256 = find_file(context, body.data).sha256
    except NotFound as error:
        if body.sha256 is None:
            error.param = param
            raise
        sha256 = body.sha256  # as the alias has it, whose file was deleted
    if body.sha256 not in (None, sha256):
        raise InvalidRequest(f"The content of {body.data} is another one than `sha256` says.", param=param)
    options = DataOptions(**body.reading.model_dump()) if body.reading else DataOptions()
    return RequiredEvaluation(
        data=body.data,
        sha256=sha256,
        metric=body.metric,
        reading=options.model_dump(mode="json", exclude_defaults=True),
        extract=body.extract,
        json_schema=body.json_schema,
        temperature=body.temperature,
    )


def guard_of(context: ServiceContext, guard: AliasGuard | None) -> AliasGuard | None:
    """The guard with the model that its judge stands for. Raises NotFound, InvalidRequest and EngineUnavailable."""
    if guard is None or guard.judge is None:
        return guard
    model, _ = resolved_model(context, guard.judge.model, "guard.judge.model")
    return replace(guard, judge=replace(guard.judge, model=model.name))


def judged_so_far(context: ServiceContext, alias: Alias) -> list[JudgedTargetObject] | None:
    """What the judge of its guard has made of its targets; None where it has no judge."""
    limits = alias.guard.judge if alias.guard is not None else None
    if limits is None:
        return None
    found = []
    for (model, against), outcomes in context.store.alias_judgements.of(alias.name, alias.version).items():
        rate = win_rate(outcomes, limits.min_win_rate, limits.min_samples)
        of_rate = {"verdict": rate.verdict, "wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
        shown = {"win_rate": rate.value, "low": rate.low, "high": rate.high}
        found.append(JudgedTargetObject(model=model, against=against, **of_rate, **shown))
    return found


def judge_targets(
    requirement: AliasRequirement, new: Sequence[str], present: Sequence[str], evidence: Evidence
) -> list[TargetVerdict]:
    """What is known of the models that are to become targets."""
    contents = {name: evidence.content(name) for name in present}
    return [_judged(requirement, model, contents, evidence) for model in new]


def _judged(
    requirement: AliasRequirement, model: str, present: dict[str, str | None], evidence: Evidence
) -> TargetVerdict:
    content = evidence.content(model)
    jobs = evidence.evaluations(content) if content is not None else []
    reasons: list[Reason] = []
    id = None
    if requirement.evaluation is not None:
        judgement, id = _by_evaluation(requirement, requirement.evaluation, model, jobs, present)
        reasons += judgement.reasons
    if requirement.no_forgetting:
        reasons += _forgetting(model, jobs)
    return TargetVerdict(model=model, evaluation=id, **dict(overall(reasons)))


def _by_evaluation(
    requirement: AliasRequirement,
    wanted: RequiredEvaluation,
    model: str,
    jobs: Sequence[Job],
    present: dict[str, str | None],
) -> Found:
    """By the newest evaluation of the required kind that decides; else by the newest one."""
    limit = Limit.model_validate({
        "metric": wanted.metric,
        "min": requirement.min,
        "max": requirement.max,
        "max_drop": requirement.max_drop,
    })  # fmt: skip
    found: list[Found] = []
    for job in jobs:
        report = job.report
        if not (
            isinstance(report, EvaluationReport) and report.figure(wanted.metric) and _is_like(job, wanted)
        ):
            continue
        names = {one.content: one.name for one in request_of(job).models[1:]}
        against = [names.get(content or "", name) for name, content in present.items()]
        judgement = judge(report, [limit], against)
        if judgement.verdict is not Verdict.NOT_ENOUGH_DATA:
            return judgement, job.id
        found.append((judgement, job.id))
    if found:
        return found[0]
    return overall([_not_evaluated(requirement, wanted, model, list(present))]), None


def _forgetting(model: str, jobs: Sequence[Job]) -> list[Reason]:
    """Of each suite the newest evaluation that decides, else the newest one."""
    by_suite: dict[str, list[Reason]] = {}
    for job in jobs:
        report = job.report
        if not isinstance(report, EvaluationReport) or report.judgement is None:
            continue
        reasons = [reason for reason in report.judgement.reasons if reason.name == "forgetting"]
        known = by_suite.get(report.why)
        is_open = known is None or overall(known).verdict is Verdict.NOT_ENOUGH_DATA
        if reasons and (
            known is None or (is_open and overall(reasons).verdict is not Verdict.NOT_ENOUGH_DATA)
        ):
            by_suite[report.why] = reasons
    if by_suite:
        return [reason for reasons in by_suite.values() for reason in reasons]
    return [
        Reason(
            name="forgetting",
            verdict=Verdict.NOT_ENOUGH_DATA,
            message=f"what it has forgotten was not measured: tunewright evals create --model {model} --suite mmlu",
        )
    ]


def _is_like(job: Job, wanted: RequiredEvaluation) -> bool:
    """Whether an evaluation has the same rows and settings; how many rows it drew is for its intervals to tell."""
    request = request_of(job)
    has_schema = wanted.metric == "schema_valid"
    return (
        request.sha256 == wanted.sha256
        and request.reading.model_dump(mode="json", exclude_defaults=True) == wanted.reading
        and request.extract == wanted.extract
        and request.temperature == wanted.temperature
        and (not has_schema or request.json_schema == wanted.json_schema)
    )


def _not_evaluated(
    requirement: AliasRequirement, wanted: RequiredEvaluation, model: str, present: list[str]
) -> Reason:
    against = "".join(f" --against {name}" for name in present if requirement.max_drop is not None)
    return Reason(
        name="evaluation",
        verdict=Verdict.NOT_ENOUGH_DATA,
        message=f"it was not evaluated so: tunewright evals create --model {model}{against} --file {wanted.data} "
        f"--metric {wanted.metric}{_more(wanted)}",
        metric=wanted.metric,
    )


def _more(wanted: RequiredEvaluation) -> str:
    """Further options of the command."""
    options = [f"--extract {wanted.extract}"] if wanted.extract != "whole" else []
    options += [f"--temperature {wanted.temperature:g}"] if wanted.temperature else []
    options += ["--json-schema FILE"] if wanted.metric == "schema_valid" else []
    options += [f"--column {key}={value}" for key, value in (wanted.reading.get("columns") or {}).items()]
    return "".join(f" {option}" for option in options)
