"""What a job with the method reinforcement must meet before it is queued: its grader, its rows, its options."""

from __future__ import annotations

from tunewright.api.evaluations.creation import resolved_model
from tunewright.api.fine_tuning.method_schemas import Method
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.graders.calling import check_grader
from tunewright.graders.checking import place_of
from tunewright.graders.models import AnyGrader, ScoreModelGrader, singles
from tunewright.kinds.data import DataOptions
from tunewright.kinds.evaluation.models import EvaluatedModel
from tunewright.kinds.fine_tuning.models import GRADING_MODEL
from tunewright.kinds.grading import missing_item
from tunewright.plan.sampling import why_not_engine
from tunewright.store.records import JobInput

_GRADER = "method.reinforcement.grader"
_FIRST_ROWS = 10_000
"""That are looked at while the client waits; all others when the job is validated."""


def check_grading(
    context: ServiceContext,
    training_file: str,
    validation_file: str | None,
    data: DataOptions,
    method: Method,
    tuning: Tuning,
) -> tuple[dict[str, EvaluatedModel], list[JobInput]]:
    """The models that grade, by the names of their graders, and the inputs that they are. Raises InvalidRequest,
    NotFound and EngineUnavailable; nothing is checked for other methods."""
    if method.reinforcement is None:
        return {}, []
    grader = method.reinforcement.grader
    models, inputs = _models(context, grader)
    check_grader(grader, _GRADER, context.settings.jobs.python_graders)
    _check_options(data, method, tuning)
    _check_sampling(tuning)
    for id in (*data.weights(training_file), validation_file):
        if id is None:
            continue
        missing = missing_item(context.workspace.fetch_file(id), data.reading(True), grader, _FIRST_ROWS)
        if missing is not None:
            raise InvalidRequest(f"File {id}, {missing}.", param=_GRADER, code="invalid_grader")
    return models, inputs


def _models(context: ServiceContext, grader: AnyGrader) -> tuple[dict[str, EvaluatedModel], list[JobInput]]:
    """What the names of models that grade stand for now: that is asked, whatever they stand for later."""
    models: dict[str, EvaluatedModel] = {}
    weights: dict[str, None] = {}
    for name, one in singles(grader).items():
        if not isinstance(one, ScoreModelGrader):
            continue
        param = f"{place_of(grader, name, _GRADER)}.model"
        model, tuned = resolved_model(context, one.model, param)
        engine = context.store.engines.get(model.engine)
        if engine is not None and engine.info is not None and not engine.info.has_chat_template:
            raise InvalidRequest(
                f"{model.name} has no chat template, so that it cannot be told what to grade: name another model.",
                param=param,
                code="no_chat_template",
            )
        models[name] = model
        if tuned is not None:
            weights[tuned.sha256] = None
    return models, [JobInput(GRADING_MODEL, sha256=sha256) for sha256 in weights]


def _check_sampling(tuning: Tuning) -> None:
    """With what is given; what is left to the service is checked with the job's inputs."""
    if tuning.sampling != "engine":
        return
    why = why_not_engine(
        type="lora" if tuning.type == "auto" else tuning.type,
        algorithm="grpo" if tuning.algorithm == "auto" else tuning.algorithm,
        temperature=1.0 if tuning.temperature == "auto" else tuning.temperature,
        use_dora=tuning.use_dora,
        init=tuning.init,
        gpus=1 if tuning.gpus == "auto" else tuning.gpus,
    )
    if why is not None:
        raise InvalidRequest(
            f"tuning.sampling engine is not possible here: {why}. Leave it out.", param="tuning.sampling"
        )


def _check_options(data: DataOptions, method: Method, tuning: Tuning) -> None:
    assert method.reinforcement is not None
    if any(one.weight != 1 for one in data.mix or ()):
        raise UnsupportedFeature(
            "The method reinforcement has each row once in an epoch: leave the weights of data.mix at 1.",
            param="data.mix",
        )
    if tuning.group_by_length:
        raise UnsupportedFeature(
            "The method reinforcement makes its answers while it trains, so that their lengths are not known: leave "
            "tuning.group_by_length out.",
            param="tuning.group_by_length",
        )
    if tuning.torch_compile is True:
        raise UnsupportedFeature(
            "The method reinforcement makes its answers while it trains, which compiled layers would slow down: leave "
            "tuning.torch_compile out.",
            param="tuning.torch_compile",
        )
    if data.columns is not None:
        raise InvalidRequest(
            "data.columns leaves out all other columns, and graders refer to those: give rows with messages.",
            param="data.columns",
        )
    if method.reinforcement.hyperparameters.beta not in ("auto", 0) and tuning.type == "full":
        raise UnsupportedFeature(
            "With tuning.type full there is no reference beside the model: leave beta out, or train an adapter.",
            param="method.reinforcement.hyperparameters.beta",
        )
