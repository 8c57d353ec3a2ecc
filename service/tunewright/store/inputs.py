"""What jobs are made from: files, and weights to go on from. They are there when a job is created, and stay until it
has ended. And models that aliases and deployments have.

Who creates a job, or removes what one may need, looks and writes in one transaction, which runs `alone=INPUTS`: a job
finds its inputs or is refused, and an input that an unfinished job needs is kept. Aliases, models and deployments
likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, cast, or_, select

from tunewright.errors import InvalidRequest, NotFound
from tunewright.store.states import DeploymentState, JobKind, JobState
from tunewright.store.tables import deployments, files, jobs, models

INPUTS = "inputs of jobs"
UNFINISHED = jobs.c.state.not_in([state for state in JobState if state.is_final])


def starts_from(sha256: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a job starts from these weights: its parent's, or those of one of an export's models."""
    return or_(jobs.c.parent_sha256 == sha256, cast(jobs.c.tuning, String).contains(sha256))


def require_inputs(connection: Connection, job: Mapping[str, Any]) -> None:
    """Raises InvalidRequest or NotFound where what a new job's row names is not there: it was removed just now."""
    for param in ("training_file", "validation_file"):
        id = job.get(param)
        if id and connection.scalar(select(files.c.id).where(files.c.id == id)) is None:
            told = (
                "calibration_file"
                if job.get("kind") == JobKind.EXPORT and param == "training_file"
                else param
            )
            raise InvalidRequest(f"No such file: {id!r}. It was removed; upload it again.", param=told)
    named = {job["parent_sha256"]: job["model"]} if job.get("parent_sha256") else {}
    named |= {source["sha256"]: source["model"] for source in job["tuning"].get("models", ())}
    for sha256, model in named.items():
        if connection.scalar(select(models.c.id).where(models.c.sha256 == sha256).limit(1)) is None:
            raise NotFound(
                f"No such model: {model!r}. It was deleted.", param="model", code="model_not_found"
            )
    leaving = (deployments.c.model == job["base"], deployments.c.state == DeploymentState.DRAINING)
    if connection.scalar(select(deployments.c.id).where(*leaving)) is not None:
        raise InvalidRequest(
            f"The deployment of {job['base']} is being taken down: deploy it again first.",
            param="model",
            code="model_not_served",
        )


def refuse_needed_file(connection: Connection, id: str) -> None:
    """Raises InvalidRequest where an unfinished job reads the file."""
    reads = or_(jobs.c.training_file == id, jobs.c.validation_file == id)
    job = connection.scalar(select(jobs.c.id).where(reads, UNFINISHED).limit(1))
    if job is not None:
        raise InvalidRequest(
            f"File {id} is needed by job {job}: wait for it to end, or cancel it.", code="file_in_use"
        )


def refuse_needed_weights(connection: Connection, model: str, sha256: str) -> None:
    """Raises InvalidRequest where an unfinished job goes on from the weights of `model`."""
    job = connection.scalar(select(jobs.c.id).where(starts_from(sha256), UNFINISHED).limit(1))
    if job is not None:
        raise InvalidRequest(
            f"{model} is what job {job} starts from: wait for it, or cancel it.", code="model_in_use"
        )


def refuse_unfinished(connection: Connection, model: str, job_id: str | None) -> None:
    """Raises InvalidRequest where the job that made `model` waits for its check."""
    if job_id is not None and connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id, UNFINISHED)):
        raise InvalidRequest(
            f"{model} is being checked for job {job_id}: wait for it, or cancel the job.", code="model_in_use"
        )


def refuse_deployed(connection: Connection, model: str) -> None:
    """Raises InvalidRequest where a deployment serves `model`."""
    id = connection.scalar(select(deployments.c.id).where(deployments.c.model == model))
    if id is not None:
        raise InvalidRequest(
            f"{model} is deployed as {id}: take it down first, with DELETE /v1/deployments/{id}.",
            code="model_in_use",
        )


def refuse_base_of_jobs(connection: Connection, model: str) -> None:
    """Raises InvalidRequest where an unfinished job trains on `model`."""
    job = connection.scalar(select(jobs.c.id).where(jobs.c.base == model, UNFINISHED).limit(1))
    if job is not None:
        raise InvalidRequest(
            f"Job {job} trains on {model}, and its adapter is to be loaded there: wait for it, or cancel it.",
            code="model_in_use",
        )
