"""The interface of job kinds: validation of inputs, the spec of the job's process, and publishing of the product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from tunewright.config import Settings
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.jobs.kinds import NO_BASE, JobKind
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job
from tunewright.store.store import Store


class JobRefused(Exception):
    """The job cannot start: `code`, the message and `param` become its error."""

    def __init__(
        self, code: str, message: str, param: str | None = None, report: BaseModel | None = None
    ) -> None:
        """`report`: more than fits into a message, as the report of the kind."""
        super().__init__(message)
        self.code = code
        self.param = param
        self.report = report


@dataclass(frozen=True)
class Service:
    """What job kinds may use in the scheduler's process."""

    settings: Settings
    store: Store
    workspace: Workspace
    on_gpu: bool
    devices: Sequence[str] = ()
    """The devices that jobs may get: `cpu`, or `cuda:0` and so on."""


WITHOUT_BASE = BaseInfo(
    name=NO_BASE, path=Path(), fingerprint="", context=0, chat_template=None, tool_call_parser=None
)
"""What kinds that need no base get for one."""


@dataclass(frozen=True)
class Validated:
    """The result of checking a job's inputs."""

    resolved: BaseModel | None
    """The values chosen for every `auto`: an instance of the kind's model `resolved`."""
    summary: str
    """One line for the job's events."""
    warnings: tuple[tuple[str, str], ...] = ()
    """(code, text) of what the events should warn of."""


def fetch_weights(service: Service, job: Job, role: str) -> None:
    """Bring the job's input weights of this role to this machine, where they stay until the job has ended. Raises
    JobRefused, ArtifactsUnavailable and StorageFull."""
    for sha256 in job.weights(role):
        try:
            service.workspace.artifacts.fetch(sha256)
        except FileNotFoundError as error:
            text = "the files of the model that it starts from do not exist any more"
            raise JobRefused("model_not_found", text, "model") from error


class Kind(JobKind, ABC):
    """A kind of job. The scheduler treats jobs of every kind alike; everything that differs is here.

    A subclass sets the attributes, and `kinds/__init__.py` lists one instance of it. `base` is `WITHOUT_BASE` where the
    kind needs none.
    """

    path: str
    """The collection of its jobs in the API."""
    module: str
    """Run as `python -m module JOB_DIR`, on a folder that may hold the checkpoints of an earlier run
    (`jobs.process`)."""
    imports_torch: bool = True
    """Whether the module needs torch and what is built on it: it is then run in a fork of the process that has imported
    them (`scheduler.fork_server`)."""
    process: str
    """The name of the process in titles, messages and error codes."""
    saves: str
    """What a process that is started again continues from, in messages."""
    follows_with: str | None = None
    """The role of the weights with which a job of this kind goes on from the product of another one; None: none
    does."""
    on_kill: str
    """Advice for a process that needs more memory than there is, in messages."""

    @abstractmethod
    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        """Check the job's inputs, and fetch its weights. Raises JobRefused, ArtifactsUnavailable and StorageFull."""

    @abstractmethod
    def spec(self, service: Service, job: Job, base: BaseInfo) -> BaseModel:
        """Everything that the process needs, as the content of `spec.json`."""

    @abstractmethod
    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        """List the product of a process that has succeeded, and end the job: with `store.models.publish`, which may
        leave the end to a check, or with `store.jobs.succeed` where the product is no model. Safe to repeat after a
        crash. Raises InvalidAdapter where the product cannot be used."""

    def environment(self, service: Service, job: Job) -> dict[str, str]:
        """What the environment of the job's process has beside that of all: what must not be in its folder."""
        return {}

    def tend(self, service: Service, job: Job, folder: JobFolder) -> None:
        """Called again and again while the job's process runs: what the process has to know is left in its folder."""

    def evaluate(self, service: Service, job: Job) -> None:
        """Called again and again for an unfinished job whose product is to be evaluated (`is_evaluated`), in every
        phase; it must not block. In the phase `evaluate`, it ends the job when all is evaluated."""

    def after_failure(self, job: Job, outcome: Outcome) -> tuple[BaseModel, str] | None:
        """What a job whose process has failed is queued with again: other resolved values, and a text for its events.
        None: it stays failed. Each of them must bring the job nearer to an end."""
        return None
