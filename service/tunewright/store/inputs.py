"""The inputs of jobs: files, and weights of models. They exist when a job is created, and are kept until it has ended.
The same holds for the models of aliases and deployments.

A job is created, and a possible input is removed, in transactions that run `alone=INPUTS`: a job whose inputs do not
exist is refused, and an input that an unfinished job needs is not removed.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, exists, select

from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.jobs.kinds import kind_named
from tunewright.store.records import NewJob
from tunewright.store.states import DeploymentState, JobState
from tunewright.store.tables import deployments, files, job_inputs, jobs, models

INPUTS = "inputs of jobs"
UNFINISHED = jobs.c.state.not_in([state for state in JobState if state.is_final])


def needed_by_a_job(sha256: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Whether an unfinished job starts from these weights."""
    return exists().where(job_inputs.c.sha256 == sha256, job_inputs.c.job_id == jobs.c.id, UNFINISHED)


def require_inputs(connection: Connection, new: NewJob) -> None:
    """Raises InvalidRequest or NotFound where an input of a new job does not exist, since it was removed just now."""
    for one in new.inputs:
        if one.file_id and connection.scalar(select(files.c.id).where(files.c.id == one.file_id)) is None:
            raise InvalidRequest(
                f"No such file: {quoted(one.file_id)}. It was removed; upload it again.", param=one.role
            )
        weights = select(models.c.id).where(models.c.sha256 == one.sha256).limit(1)
        if one.sha256 and connection.scalar(weights) is None:
            name = kind_named(new.kind).name_of_input(new.request, one.role, new.position_of(one))
            raise NotFound(
                f"No such model: {quoted(name)}. It was deleted.", param="model", code="model_not_found"
            )
    leaving = (deployments.c.model == new.base, deployments.c.state == DeploymentState.DRAINING)
    if connection.scalar(select(deployments.c.id).where(*leaving)) is not None:
        raise InvalidRequest(
            f"The deployment of {new.base} is being taken down: deploy it again first.",
            param="model",
            code="model_not_served",
        )


def refuse_needed_file(connection: Connection, id: str) -> None:
    """Raises InvalidRequest where an unfinished job reads the file."""
    job = _needed_by(connection, job_inputs.c.file_id == id)
    if job is not None:
        raise InvalidRequest(
            f"File {id} is needed by job {job}: wait for it to end, or cancel it.", code="file_in_use"
        )


def refuse_needed_weights(connection: Connection, model: str, sha256: str) -> None:
    """Raises InvalidRequest where an unfinished job starts from the weights of `model`."""
    job = _needed_by(connection, job_inputs.c.sha256 == sha256)
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
    """Raises InvalidRequest where `model` is the base of an unfinished job."""
    job = connection.scalar(select(jobs.c.id).where(jobs.c.base == model, UNFINISHED).limit(1))
    if job is not None:
        raise InvalidRequest(
            f"Job {job} needs {model}, which is its base: wait for it, or cancel it.",
            code="model_in_use",
        )


def _needed_by(connection: Connection, which: ColumnElement[bool]) -> str | None:
    """The id of an unfinished job with such an input; None where there is none."""
    query = select(jobs.c.id).join(job_inputs, and_(job_inputs.c.job_id == jobs.c.id, which))
    return connection.scalar(query.where(UNFINISHED).order_by(jobs.c.seq).limit(1))
