"""The rows of aliases and of their versions. Every function runs in the transaction of its caller."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from tunewright.errors import InvalidRequest
from tunewright.metrics.verdicts import Gate
from tunewright.registry.aliases import (
    Alias,
    AliasGuard,
    AliasRequirement,
    AliasShadow,
    AliasTarget,
    RequiredEvaluation,
)
from tunewright.store.outbox import ALIAS_ROLLED_BACK, tell
from tunewright.store.records import AliasVersion
from tunewright.store.tables import alias_judgements, alias_versions, aliases, shadow_answers


class Content(NamedTuple):
    """The content of a version; the targets are sorted by name."""

    targets: tuple[AliasTarget, ...]
    shadow: AliasShadow | None = None
    guard: AliasGuard | None = None
    require: AliasRequirement | None = None

    @property
    def models(self) -> set[str]:
        """Names of the targets and of the shadow."""
        shadow = {self.shadow.model} if self.shadow else set()
        return {target.model for target in self.targets} | shadow


def content_of(of: Alias | AliasVersion) -> Content:
    return Content(of.targets, of.shadow, of.guard, of.require)


# aliases


def get(connection: Connection, name: str) -> Alias | None:
    row = connection.execute(select(aliases).where(aliases.c.name == name)).one_or_none()
    return parse_alias(row) if row else None


def all_aliases(connection: Connection) -> list[Alias]:
    return [parse_alias(row) for row in connection.execute(select(aliases).order_by(aliases.c.name))]


def using(connection: Connection, model: str) -> list[Alias]:
    """The aliases that have the model as a target or as their shadow."""
    return [alias for alias in all_aliases(connection) if model in content_of(alias).models]


def refuse_aliased(connection: Connection, model: str) -> None:
    """Raises InvalidRequest where an alias has the model as a target or as its shadow."""
    names = ", ".join(alias.name for alias in using(connection, model))
    if names:
        raise InvalidRequest(
            f"{model} is in use by aliases: {names}. Give them another model first, or delete it with force=true.",
            code="model_in_use",
        )


def take_out(connection: Connection, model: str, who: str | None) -> None:
    """Take the model out of its aliases. An alias whose only target it is is deleted."""
    for alias in using(connection, model):
        targets = tuple(target for target in alias.targets if target.model != model)
        if not targets:
            remove(connection, alias.name, who, f"its only target was deleted: {model}")
            continue
        shadow = None if alias.shadow and alias.shadow.model == model else alias.shadow
        content = content_of(alias)._replace(targets=targets, shadow=shadow)
        write(connection, alias.name, content, who, f"a model was deleted: {model}")


def needed_by_aliases(connection: Connection) -> set[str]:
    """Models that aliases name now, and those that a rollback would restore."""
    found: set[str] = set()
    for alias in all_aliases(connection):
        found |= content_of(alias).models
        if earlier := before(connection, alias.name, alias.version, alias.project):
            found |= content_of(earlier).models
    return found


# versions


def before(
    connection: Connection, name: str, version: int, project: str | None = None
) -> AliasVersion | None:
    """The version that a rollback from `version` restores. Where `version` is itself a rollback, it is the one before
    the version that this restored. `project`: of the alias, where the connection is that of all projects."""
    while (repeated := version_of(connection, name, version, project).rolled_back_to) is not None:
        version = repeated
    earlier = versions(name, project).where(alias_versions.c.version < version).limit(2)
    found = [parse_version(row) for row in connection.execute(earlier)]
    return next((row for row in found if row.targets), None)  # no two deletions follow each other


def version_of(connection: Connection, name: str, version: int, project: str | None = None) -> AliasVersion:
    query = versions(name, project).where(alias_versions.c.version == version)
    return parse_version(connection.execute(query).one())


def versions(name: str, project: str | None = None) -> Select[Any]:
    """The query for the versions of an alias, newest first."""
    query = select(alias_versions).where(alias_versions.c.alias == name)
    if project is not None:
        query = query.where(alias_versions.c.project == project)
    return query.order_by(alias_versions.c.version.desc())


def write(
    connection: Connection,
    name: str,
    content: Content,
    who: str | None,
    why: str,
    *,
    rolled_back_to: int | None = None,
    gate: Gate | None = None,
) -> Alias:
    """Write the alias's next version, to its history and as its current content."""
    version, now = _log(connection, name, content, who, why, rolled_back_to, gate)
    values = {"version": version, "updated_at": now, **_columns(content)}
    changed = update(aliases).where(aliases.c.name == name).values(**values).returning(aliases)
    row = connection.execute(changed).one_or_none()
    if row is None:
        row = connection.execute(
            insert(aliases).values(name=name, created_at=now, **values).returning(aliases)
        ).one()
    if rolled_back_to is not None:
        tell(
            connection,
            ALIAS_ROLLED_BACK,
            name,
            row.project,
            version=version,
            restored_version=rolled_back_to,
        )
    return parse_alias(row)


def remove(connection: Connection, name: str, who: str | None, why: str) -> None:
    """Delete the alias and its shadow's answers. The deletion is a version of its history."""
    _log(connection, name, Content(()), who, why)
    connection.execute(delete(aliases).where(aliases.c.name == name))
    connection.execute(delete(shadow_answers).where(shadow_answers.c.alias == name))
    connection.execute(delete(alias_judgements).where(alias_judgements.c.alias == name))


def _log(
    connection: Connection,
    name: str,
    content: Content,
    who: str | None,
    why: str,
    rolled_back_to: int | None = None,
    gate: Gate | None = None,
) -> tuple[int, float]:
    newest = select(func.max(alias_versions.c.version)).where(alias_versions.c.alias == name)
    version, now = (connection.scalar(newest) or 0) + 1, time.time()
    connection.execute(
        insert(alias_versions).values(
            alias=name,
            version=version,
            at=now,
            who=who,
            why=why,
            rolled_back_to=rolled_back_to,
            gate=gate.model_dump(mode="json") if gate else None,
            **_columns(content),
        )
    )
    return version, now


# rows


def _columns(content: Content) -> dict[str, Any]:
    return {
        "targets": [asdict(target) for target in content.targets],
        "shadow": asdict(content.shadow) if content.shadow else None,
        "guard": asdict(content.guard) if content.guard else None,
        "require": asdict(content.require) if content.require else None,
    }


def _parsed(row: Row[Any]) -> dict[str, Any]:
    values = dict(row._mapping)
    values["targets"] = tuple(AliasTarget(**target) for target in values["targets"])
    values["shadow"] = AliasShadow(**values["shadow"]) if values["shadow"] else None
    values["guard"] = AliasGuard(**values["guard"]) if values["guard"] else None
    values["require"] = _requirement(values["require"]) if values["require"] else None
    return values


def _requirement(stored: dict[str, Any]) -> AliasRequirement:
    evaluation = stored["evaluation"]
    return AliasRequirement(
        **{**stored, "evaluation": RequiredEvaluation(**evaluation) if evaluation else None}
    )


def parse_alias(row: Row[Any]) -> Alias:
    return Alias(**_parsed(row))


def parse_version(row: Row[Any]) -> AliasVersion:
    values = _parsed(row)
    values["gate"] = Gate.model_validate(values["gate"]) if values["gate"] else None
    return AliasVersion(**values)
