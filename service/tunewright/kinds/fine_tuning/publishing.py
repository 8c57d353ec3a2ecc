"""Stores the products of a finished training run as artifacts, and lists all of them or none."""

from __future__ import annotations

import csv
import hashlib
import io
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from tunewright.ids import model_name, result_file_id
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.fine_tuning.mixing import mix_of_lineage, weights_of
from tunewright.kinds.fine_tuning.models import (
    PARENT,
    TRAINING_FILE,
    VALIDATION_FILE,
    FineTuningRequest,
    FineTuningResult,
)
from tunewright.kinds.kind import Service
from tunewright.kinds.products import adapter_row, lineage_of_files, model_row, state_of_new_adapter
from tunewright.plan.defaults import Resolved
from tunewright.plan.methods import METHODS
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job
from tunewright.store.states import ModelMethod
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingResult


def publish_products(
    service: Service, job: Job, base: BaseInfo, folder: JobFolder, result: TrainingResult
) -> None:
    """List the final adapter, which is loaded, and the checkpoints of its epochs, which are loaded on request; or the
    full model.

    Where the parity check is on, adapters wait for it, and the job waits for the verdict on the final one. Safe to
    repeat after a crash: artifacts are named by their content, and the listing is one transaction. Raises
    InvalidAdapter where a weight is NaN or infinite: then nothing is listed.
    """
    store, workspace = service.store, service.workspace
    artifacts = workspace.artifacts
    request, resolved = job.request, job.resolved
    assert isinstance(request, FineTuningRequest)
    assert isinstance(resolved, Resolved)
    common: dict[str, Any] = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "method": ModelMethod.REWARD if METHODS[request.method].scores else ModelMethod(resolved.type),
        "chat_template": request.chat_template,
    }
    name = model_name(job.base, request.suffix, job.id)
    parents = job.weights(PARENT)
    lineage = replace(
        lineage_of_files(store, job.file(TRAINING_FILE), job.file(VALIDATION_FILE)),
        parent_sha256=parents[0] if parents else None,
        mix=mix_of_lineage(store, weights_of(job, request), result.examples),
        seed=job.seed,
        metrics=result.metrics or None,
    )
    with ExitStack() as kept:
        if resolved.type == "full" or METHODS[request.method].scores:
            common["lineage"] = asdict(lineage)
            products = [model_row(artifacts, kept, folder.model, name, common)]
        else:
            common["state"] = state_of_new_adapter(service.settings.parity)
            products = [
                adapter_row(
                    artifacts, kept, folder.adapter, name, None, {**common, "lineage": asdict(lineage)}
                )
            ]
            for step in sorted(result.checkpoints):
                path = folder.checkpoints / f"step-{step}"
                if (path / "complete.json").is_file():
                    checkpoint = model_name(job.base, request.suffix, job.id, step)
                    made_from = asdict(replace(lineage, metrics=result.checkpoints[step]))
                    converted = folder.converted(step)
                    path = converted if converted.is_dir() else path
                    products.append(
                        adapter_row(artifacts, kept, path, checkpoint, step, {**common, "lineage": made_from})
                    )
        kept.enter_context(workspace.keeping(result_file_id(job.id)))
        store.models.publish(
            products,
            job_id=job.id,
            result=FineTuningResult(
                trained_tokens=result.trained_tokens,
                best=result.best,
                planned=result.planned,
                measured=result.measured,
                cost=result.cost,
                forgetting=result.forgetting,
            ),
            checkpoint_metrics=result.checkpoints,
            result_file=_metrics_file(store, workspace, job, request.method),
        )


_COLUMNS = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "learning_rate",
    "grad_norm", "tokens_per_second",
)  # fmt: skip
_REWARDS = ("reward_margin", "reward_chosen", "reward_rejected")
_OF_GRADED = (
    "reward",
    "reward_std",
    "reward_zero_std",
    "kl",
    "completion_length",
    "completions_clipped",
    "grader_errors",
)
_COLUMNS_OF = {
    "dpo": ("reward_accuracy", *_REWARDS),
    "kto": (*_REWARDS, "kl"),
    "orpo": ("reward_accuracy", *_REWARDS, "nll_loss", "log_odds"),
    "reward": ("reward_accuracy", "reward_margin", "reward_mean"),
    "reinforcement": _OF_GRADED,
}
"""Of each method, for training and for validation."""


def _metrics_file(store: Store, workspace: Workspace, job: Job, method: str) -> dict[str, Any]:
    """Write OpenAI's result file, a CSV with the metrics of every step. Returns its row."""
    text = io.StringIO()
    measures = _COLUMNS_OF.get(method, ())
    columns = _COLUMNS + tuple(f"{when}_{name}" for name in measures for when in ("train", "valid"))
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    after, more = None, True
    while more:
        events, more = store.jobs.events(job.id, after=after, limit=1000, ascending=True)
        writer.writerows(event.data for event in events if event.type == "metrics" and event.data)
        after = events[-1].id if events else None
    content = text.getvalue().encode()
    id = result_file_id(job.id)
    temporary = workspace.tmp / id
    temporary.write_bytes(content)
    workspace.keep_file(temporary, id)
    return {
        "id": id,
        "filename": "step_metrics.csv",
        "purpose": "fine-tune-results",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
