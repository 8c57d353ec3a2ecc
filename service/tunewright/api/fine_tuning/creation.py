"""Creates fine-tuning jobs from requests. A request that cannot succeed is refused here, before the job is queued."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from functools import partial

from tunewright.api.deployments.creation import trainable_deployments
from tunewright.api.fine_tuning.data import check_chat_template, data_options
from tunewright.api.fine_tuning.evaluate import evaluate_request
from tunewright.api.fine_tuning.gpus import check_gpus
from tunewright.api.fine_tuning.grading import check_grading
from tunewright.api.fine_tuning.integrations import integrations_of
from tunewright.api.fine_tuning.method_schemas import Method
from tunewright.api.fine_tuning.methods import (
    batch_size_of,
    check_held_out,
    check_method,
    check_rows_at_a_time,
    check_targets,
    hyperparameters_of,
    without_dropout,
)
from tunewright.api.fine_tuning.plan import check_mix, fitting_type
from tunewright.api.fine_tuning.schemas import CreateJob
from tunewright.api.fine_tuning.steps import with_steps
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import check_training_file, create_once
from tunewright.errors import InvalidRequest, NotFound, UnsupportedFeature, quoted
from tunewright.kinds import FINE_TUNING
from tunewright.kinds.fine_tuning.evaluating import evaluations_before
from tunewright.kinds.fine_tuning.models import (
    PARENT,
    TRAINING_FILE,
    VALIDATION_FILE,
    FineTuningRequest,
)
from tunewright.kinds.fine_tuning.parents import options_of
from tunewright.kinds.fine_tuning.reporting import why_not_all
from tunewright.plan.initializations import served_rank
from tunewright.plan.methods import METHODS
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.store.records import Job, JobInput, NewJob, TunedModel
from tunewright.store.states import ModelKind, ModelMethod


def create_job(context: ServiceContext, body: CreateJob, idempotency_key: str | None) -> Job:
    """Create a job, or return the one that the same key created before.

    Raises InvalidRequest, NotFound and TooManyRequests.
    """
    checked = partial(_checked, context)
    return create_once(context, body, idempotency_key, lambda: with_steps(body, checked(body), checked))


def _checked(context: ServiceContext, body: CreateJob) -> NewJob:
    data = data_options(body.data, body.validation_file)
    method = body.method or Method()
    validation_file = None if data.validation_share else body.validation_file
    check_training_file(context, "training_file", body.training_file, data, method.type)
    check_mix(context, body.training_file, data, method.type)
    if validation_file is not None:
        check_training_file(context, "validation_file", validation_file, data, method.type)
    check_chat_template(body.chat_template)
    tuning = body.tuning or Tuning()
    check_method(method, tuning)
    check_held_out(tuning, body.validation_file)
    base, parent = _model(context, body.model, tuning)
    _check_scores(method, body, parent)
    if tuning.type == "auto" and parent and parent.kind is ModelKind.FULL:
        tuning = tuning.model_copy(update={"type": "full"})
    if parent is not None:
        tuning = _fixed_by_parent(context, parent, tuning)
    check_targets(tuning)
    tuning = without_dropout(method, tuning)
    cpu_processes = context.settings.jobs.cpu_processes
    check_gpus(method.type, tuning, batch_size_of(body, tuning), context.devices(), cpu_processes)
    grading_models, models_needed = check_grading(
        context, body.training_file, validation_file, data, method, tuning
    )
    _check_rank(context, base, tuning)
    tuning = tuning.model_copy(update={"type": fitting_type(context, body, base, tuning)})
    check_rows_at_a_time(method, tuning, hyperparameters_of(body), data)
    inputs = [JobInput(TRAINING_FILE, file_id=id) for id in data.weights(body.training_file)]
    if validation_file is not None:
        inputs.append(JobInput(VALIDATION_FILE, file_id=validation_file))
    if parent is not None:
        inputs.append(JobInput(PARENT, sha256=parent.sha256))
    evaluate, needed = evaluate_request(context, body.evaluate, base, tuning)
    request = FineTuningRequest(
        model=body.model,
        suffix=body.suffix,
        data=data,
        chat_template=body.chat_template or (parent.chat_template if parent else None),
        method=method.type,
        grader=method.reinforcement.grader if method.reinforcement else None,
        grading_models=grading_models,
        hyperparameters=HyperparameterOptions(**hyperparameters_of(body).model_dump()),
        tuning=TuningOptions(**tuning.model_dump()),
        evaluate=evaluate,
        **integrations_of(body.integrations),
    )
    new = NewJob(
        kind=FINE_TUNING.name,
        base=base,
        request=request.model_copy(update={"unreported": why_not_all(context.settings, request)}),
        seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
        inputs=(*inputs, *models_needed, *needed),
        metadata=body.metadata,
    )
    return replace(new, first=evaluations_before(new, context.store.engines.get(base)))


def _model(context: ServiceContext, name: str, tuning: Tuning) -> tuple[str, TunedModel | None]:
    """The base, and the model whose training is continued, if any. An adapter on a deployed model has it as base."""
    bases = [base.name for base in context.bases()]
    if name in bases:
        return name, None
    parent = context.store.models.get(name)
    served = trainable_deployments(context)
    if parent is None:
        if name in served:
            return _adapters_only(context, name, tuning), None
        raise NotFound(
            f"No such model: {quoted(name)}. Bases here: {', '.join([*bases, *served])}; finished models are listed by "
            "GET /v1/models.",
            param="model",
            code="model_not_found",
        )
    if parent.method is ModelMethod.AWQ:
        raise _quantized(parent.name, parent.method)
    if parent.method is ModelMethod.REWARD:
        raise UnsupportedFeature(
            f"{parent.name} is a reward model: it gives answers scores, and no job goes on from it. Train on the model "
            "that it was made from.",
            param="model",
        )
    if parent.kind is ModelKind.FULL and tuning.type in ("lora", "qlora"):
        if parent.name not in served:
            raise InvalidRequest(
                f"{parent.name} is not deployed, so an adapter on it could not be served: deploy it first, with "
                "POST /v1/deployments, or use tuning.type full to continue from its weights.",
                param="tuning.type",
                code="model_not_served",
            )
        return parent.name, None
    if parent.base not in bases and parent.base not in served:
        raise InvalidRequest(
            f"{name} was tuned from {parent.base}, which is not among the bases here.", param="model"
        )
    return parent.base, parent


def _check_scores(method: Method, body: CreateJob, parent: TunedModel | None) -> None:
    """What a job whose product gives scores cannot have. Raises UnsupportedFeature."""
    if not METHODS[method.type].scores:
        return
    if parent is not None and parent.kind is ModelKind.ADAPTER:
        raise UnsupportedFeature(
            f"{parent.name} is an adapter: the method {method.type} begins with a base or a whole model. Merge "
            "it first (POST /v1/exports), and deploy the result, or train that with tuning.type full.",
            param="model",
        )
    if body.evaluate is not None:
        raise UnsupportedFeature(
            f"The method {method.type} makes a model that answers nothing: leave `evaluate` out. "
            "valid_reward_accuracy is how often held-out pairs are told apart.",
            param="evaluate",
        )


def _adapters_only(context: ServiceContext, name: str, tuning: Tuning) -> str:
    """The base for a model that is deployed but was not made here. Raises UnsupportedFeature for all but adapters."""
    engine = context.store.engines.get(name)
    quantization = engine.info.quantization if engine and engine.info else None
    if quantization:
        raise _quantized(name, quantization)
    if tuning.type == "full":
        raise UnsupportedFeature(
            f"{name} is deployed beside the bases, and adapters are what can be trained on it: use tuning.type lora or "
            "qlora, or start the service with it as a --base.",
            param="tuning.type",
        )
    return name


def _quantized(name: str, how: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{name} is quantized ({how.upper()}), and its weights cannot be trained on: use the model that it was made "
        "from.",
        param="model",
    )


def _check_rank(context: ServiceContext, base: str, tuning: Tuning) -> None:
    deployment = trainable_deployments(context).get(base)
    options = deployment.options if deployment else {}
    largest = options.get("max_lora_rank", context.settings.serving.max_lora_rank)
    if tuning.type != "full" and not options.get("enable_lora", True):
        raise InvalidRequest(
            f"{base} is deployed without adapters (enable_lora false), so one on it could not be served: deploy it "
            "with them.",
            param="model",
        )
    if tuning.type == "full":
        given = [
            key
            for key in ("rank", "alpha", "dropout", "target_modules", "loraplus_lr_ratio", "init")
            if getattr(tuning, key) not in ("auto", None)
        ] + [key for key in ("use_rslora", "use_dora") if getattr(tuning, key)]
        if given:
            raise InvalidRequest(
                f"tuning.{given[0]} is for adapters; type full trains all weights.",
                param=f"tuning.{given[0]}",
            )
    elif isinstance(tuning.rank, int) and served_rank(tuning.rank, tuning.init) > largest:
        made = served_rank(tuning.rank, tuning.init)
        doubled = f" (with init {tuning.init} twice the rank {tuning.rank})" if made != tuning.rank else ""
        raise InvalidRequest(
            f"The engine serves adapters up to rank {largest}, so one of rank {made}{doubled} could not be used. "
            + (
                "Lower it, or deploy the model with a larger max_lora_rank."
                if deployment
                else "Lower it, or start the service with a larger --max-lora-rank."
            ),
            param="tuning.rank",
        )


def _fixed_by_parent(context: ServiceContext, parent: TunedModel, tuning: Tuning) -> Tuning:
    """The options for continuing the training of `parent`, whose adapter fixes rank, alpha, modules and the like.

    Raises InvalidRequest where the request sets them to other values, and NotFound where the parent was deleted.
    """
    if parent.kind is ModelKind.FULL:
        return tuning
    if tuning.type == "full":
        raise UnsupportedFeature(
            f"{parent.name} is an adapter; it can be trained on as lora or qlora, not as full.",
            param="tuning.type",
        )
    try:
        fixed = options_of(context.workspace.artifacts, parent)
    except FileNotFoundError as error:
        raise NotFound(
            f"No such model: {parent.name!r}. It was deleted.", param="model", code="model_not_found"
        ) from error
    if tuning.init != "auto":
        raise InvalidRequest(
            f"tuning.init is for new adapters, and {parent.name} is one already: leave it out.",
            param="tuning.init",
        )
    for key in tuning.model_fields_set & fixed.keys():
        asked, value = getattr(tuning, key), fixed[key]
        asked = sorted(asked) if isinstance(asked, list) else asked
        if asked not in ("auto", "all-linear") and asked != value:
            raise InvalidRequest(
                f"{parent.name} has {key} {json.dumps(value)}; a job that continues from it cannot change that to "
                f"{json.dumps(asked)}.",
                param=f"tuning.{key}",
            )
    return tuning.model_copy(update=fixed)
