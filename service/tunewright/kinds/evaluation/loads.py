"""Evaluations that measure latency under loads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tunewright.engine.usage import Usage
from tunewright.evaluator.folder import Loads
from tunewright.kinds.evaluation.models import EvaluationPlan, EvaluationRequest, LoadRequest
from tunewright.kinds.kind import JobRefused, Service, Validated
from tunewright.store.records import Engine


def validated_load(asked: LoadRequest, engines: Sequence[Engine]) -> Validated:
    tokens = asked.prompt_tokens + asked.answer_tokens
    for engine in engines:
        context = engine.info.max_model_len if engine.info else None
        if context is not None and tokens > context:
            raise JobRefused(
                "context_length_exceeded",
                f"prompts of {asked.prompt_tokens} tokens with answers of {asked.answer_tokens} are more than the "
                f"context of {engine.name}, {context}: lower load.prompt_tokens or load.answer_tokens",
                "load",
            )
    return Validated(EvaluationPlan(max_tokens=asked.answer_tokens), f"Loads of {tokens} tokens a request")


def loads_of(service: Service, asked: LoadRequest, places: Collection[int]) -> Loads:
    """`places`: requests that an evaluation may have at each engine at a time, which is the largest load where none is
    asked for."""
    jobs = service.settings.jobs
    return Loads(
        at_once=sorted(set(asked.at_once or (1, min(places, default=1)))),
        prompt_tokens=asked.prompt_tokens,
        answer_tokens=asked.answer_tokens,
        requests=asked.requests,
        price_per_hour=jobs.price_per_hour,
        currency=jobs.currency,
    )


def with_memory(
    service: Service, request: EvaluationRequest, report: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The report with the GPU memory of each engine, which keeps what it has taken under the loads."""
    if request.load is None or report is None or not service.on_gpu:
        return report
    usage, engines = Usage(), {model.name: model.engine for model in request.models}
    records = {name: service.workspace.engine(engine) / "process.json" for name, engine in engines.items()}
    found = {name: usage.device_memory(record) for name, record in records.items()}
    loads = [{**load, "device_memory_bytes": found[load["model"]]} for load in report["loads"]]
    return {**report, "loads": loads}
