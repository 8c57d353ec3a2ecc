"""What an alias requires of new targets, looked up and enforced in the transaction that changes the alias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from sqlalchemy import Connection, select

from tunewright.errors import Conflict
from tunewright.metrics.verdicts import Gate, TargetVerdict, Verdict
from tunewright.registry.aliases import Alias, AliasRequirement
from tunewright.store import job_rows
from tunewright.store.alias_rows import Content
from tunewright.store.records import Engine, Job
from tunewright.store.states import JobState, ModelKind
from tunewright.store.tables import engines, jobs, models

_MOST = 100
"""Evaluations of one model that are looked at, newest first."""


class Kept(Enum):
    """Stands for the requirement that an alias has."""

    KEEP = "keep"


KEEP = Kept.KEEP


class Evidence:
    """What is known of models."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def content(self, model: str) -> str | None:
        """The hash of an adapter's weights, else the fingerprint of what its engine serves: as an evaluation names
        it."""
        tuned = self._connection.execute(select(models).where(models.c.name == model)).one_or_none()
        if tuned is not None and tuned.kind == ModelKind.ADAPTER:
            return str(tuned.sha256)
        row = self._connection.execute(select(engines).where(engines.c.name == model)).one_or_none()
        engine = Engine(**row._mapping) if row is not None else None
        return engine.info.fingerprint if engine is not None and engine.info is not None else None

    def evaluations(self, content: str, limit: int = _MOST) -> Sequence[Job]:
        """The evaluations of a model that have succeeded, newest first."""
        query = (
            select(jobs)
            .where(jobs.c.kind == "evaluation", jobs.c.state == JobState.SUCCEEDED)
            .where(jobs.c.request[("models", 0, "content")].as_string() == content)
            .order_by(jobs.c.seq.desc())
            .limit(limit)
        )
        return job_rows.read(self._connection, self._connection.execute(query).all())


Judge = Callable[[AliasRequirement, Sequence[str], Sequence[str], Evidence], list[TargetVerdict]]
"""Judges new targets, given the present ones."""


def pass_gate(
    connection: Connection,
    name: str,
    current: Alias | None,
    content: Content,
    judge: Judge | None,
    *,
    force: bool,
) -> Gate | None:
    """What the requirement says of the targets that are new; None where there is no requirement, or no new target.

    A requirement that is changed or dropped with the same request holds for it too. Raises Conflict where a target has
    not passed and `force` is not given.
    """
    present = [target.model for target in current.targets] if current else []
    new = [target.model for target in content.targets if target.model not in present]
    before = current.require if current else None
    found = [one for one in (before, content.require if content.require != before else None) if one]
    if not new or not found:
        return None
    if judge is None:
        raise ValueError(f"{name} has a requirement, and nothing judges its targets")
    evidence = Evidence(connection)
    verdicts = [verdict for requirement in found for verdict in judge(requirement, new, present, evidence)]
    passed = all(one.verdict is Verdict.PASS for one in verdicts)
    gate = Gate(forced=not passed, targets=verdicts)
    if not passed and not force:
        raise Conflict(
            f"{name} was left as it is, since it requires what is not shown of {gate.not_passed()}. `force` sets it "
            "nevertheless, and is recorded.",
            param="targets",
            code="gate_not_passed",
        )
    return gate
