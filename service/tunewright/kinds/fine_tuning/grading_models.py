"""The models that grade the answers of a job of the method reinforcement, by graders of type `score_model`."""

from __future__ import annotations

from tunewright.engine.command import inner_socket
from tunewright.jobs.gateway import AskedModel
from tunewright.kinds.evaluation.models import EvaluatedModel
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.kinds.kind import Service
from tunewright.kinds.shares import places_at
from tunewright.store.records import Job
from tunewright.trainer.spec import GradingModels


def models_that_grade(service: Service, job: Job, request: FineTuningRequest) -> GradingModels | None:
    """What the job's process needs to ask them; None where the grader asks none."""
    if not request.grading_models:
        return None

    def asked(model: EvaluatedModel) -> AskedModel:
        engine = service.store.engines.get(model.engine)
        at_once = places_at(engine) if engine is not None else 1
        return AskedModel(name=model.name, content=model.content, at_once=at_once)

    return GradingModels(
        socket=str(inner_socket(service.workspace.path)),
        project=job.project,
        key=job.api_key_id,
        request_timeout=service.settings.server.request_timeout,
        by_grader={grader: asked(model) for grader, model in request.grading_models.items()},
    )


def weights_that_grade(request: FineTuningRequest) -> list[EvaluatedModel]:
    """The models whose weights are inputs of the job, each once, in the order of the inputs."""
    found: dict[str, EvaluatedModel] = {}
    for model in request.grading_models.values():
        if model.has_weights:
            found.setdefault(model.name, model)
    return list(found.values())


def told_of_models(request: FineTuningRequest) -> str:
    """What grades, for the job's events."""
    if not request.grading_models:
        return ""
    names = ", ".join(dict.fromkeys(model.name for model in request.grading_models.values()))
    return f". Its answers are graded by {names}, through the gateway"
