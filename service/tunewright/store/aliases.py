"""Aliases and their versions.

Each change is a new version, written in the same transaction; versions are numbered without gaps, even across a
deletion. Transactions that change an alias or remove a model run `alone=INPUTS`, so the model of a target exists, and
it cannot be deleted without being taken out of its aliases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import Connection, Text, cast, select

from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.metrics.verdicts import Gate
from tunewright.registry.aliases import (
    MOST_TARGETS,
    Alias,
    AliasGuard,
    AliasRequirement,
    AliasShadow,
    AliasTarget,
    is_alias_name,
)
from tunewright.store.alias_gates import KEEP, Evidence, Judge, Kept, pass_gate
from tunewright.store.alias_rows import (
    Content,
    before,
    content_of,
    get,
    parse_alias,
    parse_version,
    remove,
    take_out,
    using,
    version_of,
    versions,
    write,
)
from tunewright.store.database import Database
from tunewright.store.inputs import INPUTS
from tunewright.store.records import AliasVersion, Job, TunedModel
from tunewright.store.states import UNCHECKED, EngineState, ModelKind, ModelState
from tunewright.store.tables import alias_versions, aliases, engines, models


class AliasStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def put(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        shadow: AliasShadow | None = None,
        guard: AliasGuard | None = None,
        require: AliasRequirement | Kept | None = KEEP,
        *,
        judge: Judge | None = None,
        force: bool = False,
        who: str | None = None,
        why: str = "set",
        expected_version: int | None = None,
    ) -> Alias:
        """Set the content of the alias, for every request that is routed from now on. A content equal to the current
        one makes no new version. What an alias requires stays unless it is given.

        `expected_version`: the version that is replaced; 0: the alias must not exist yet. `judge` says of new targets
        whether they have what the alias requires; `force` sets those that have not. Raises InvalidRequest where
        the alias has another version, the name is not valid for an alias, or a model cannot be served, and Conflict
        where a new target has not passed.
        """
        with self._database.begin(alone=INPUTS) as connection:
            content = _content(connection, name, targets, shadow, guard, require)
            current, gate = _accepted(connection, name, content, expected_version, judge, force)
            if current is not None and content_of(current) == content:
                return current
            if gate is not None and gate.forced:
                why = f"{why} by force, though {gate.not_passed()}"
            return write(connection, name, content, who, why, gate=gate)

    def check(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        shadow: AliasShadow | None = None,
        guard: AliasGuard | None = None,
        require: AliasRequirement | Kept | None = KEEP,
        *,
        judge: Judge | None = None,
        force: bool = False,
        expected_version: int | None = None,
    ) -> None:
        """Raises what `put` would raise now."""
        with self._database.read() as connection:
            content = _content(connection, name, targets, shadow, guard, require)
            _accepted(connection, name, content, expected_version, judge, force)

    def get(self, name: str) -> Alias | None:
        with self._database.read() as connection:
            return get(connection, name)

    def list(self, *, after: str | None = None, limit: int = 10**6) -> tuple[Sequence[Alias], bool]:
        """A page of aliases by name, those after `after`, and whether there are more."""
        query = select(aliases).order_by(aliases.c.name).limit(limit + 1)
        if after is not None:
            query = query.where(aliases.c.name > after)
        with self._database.read() as connection:
            found = [parse_alias(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def history(
        self, name: str, *, after: int | None = None, limit: int = 10**6
    ) -> tuple[Sequence[AliasVersion], bool]:
        """A page of versions, newest first, those before `after`, and whether there are more. The history stays when
        the alias is deleted."""
        query = versions(name).limit(limit + 1)
        if after is not None:
            query = query.where(alias_versions.c.version < after)
        with self._database.read() as connection:
            found = [parse_version(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def plan_rollback(
        self, name: str, to_version: int | None = None, *, expected_version: int | None = None
    ) -> tuple[Alias, AliasVersion]:
        """The alias, and the version that `rollback` would restore now. Raises what that would raise."""
        with self._database.read() as connection:
            current, earlier = _planned(connection, name, to_version, expected_version)
            _restorable(connection, earlier)
        return current, earlier

    def rollback(
        self,
        name: str,
        to_version: int | None = None,
        *,
        who: str | None = None,
        because: str | None = None,
        expected_version: int | None = None,
    ) -> Alias:
        """Restore the content of `to_version`, by default the version before the current one, as a new version.

        Where the current version is a rollback itself, the version before the one that it restored is taken, so that
        no rollback restores what an earlier one removed. A repeat with the same `expected_version` changes nothing.
        Raises NotFound, and InvalidRequest where the version does not exist or one of its targets cannot be served now.
        A shadow that cannot be served now is left out. What the alias requires stays as it is, and is not asked of
        targets that it has had: nothing may keep it from going back.
        """
        with self._database.begin(alone=INPUTS) as connection:
            current, earlier = _planned(connection, name, to_version, expected_version)
            if content_of(earlier)._replace(require=current.require) == content_of(current):
                return current
            content = _restorable(connection, earlier)._replace(require=current.require)
            why = f"rollback to version {earlier.version}" + (f": {because}" if because else "")
            return write(connection, name, content, who, why, rolled_back_to=earlier.version)

    def delete(self, name: str, *, who: str | None = None) -> bool:
        """Delete the alias and the answers of its shadows; its history stays. False where the alias does not exist."""
        with self._database.begin(alone=INPUTS) as connection:
            if get(connection, name) is None:
                return False
            remove(connection, name, who, "deleted")
        return True

    def before(self, name: str, version: int) -> AliasVersion | None:
        """The version that a rollback from `version`, which must exist, restores."""
        with self._database.read() as connection:
            return before(connection, name, version)

    def version(self, name: str, version: int) -> AliasVersion:
        """A version, which must exist."""
        with self._database.read() as connection:
            return version_of(connection, name, version)

    def evaluations(self, content: str, limit: int) -> Sequence[Job]:
        """The evaluations of the model with this content that have succeeded, newest first."""
        with self._database.read() as connection:
            return Evidence(connection).evaluations(content, limit)

    def judged(self) -> Sequence[AliasVersion]:
        """The versions of all aliases whose targets were judged, newest first."""
        query = (
            select(alias_versions)
            .where(cast(alias_versions.c.gate, Text) != "null")
            .order_by(alias_versions.c.seq.desc())
        )
        with self._database.read() as connection:
            return [parse_version(row) for row in connection.execute(query)]

    def using(self, model: str) -> Sequence[str]:
        """The names of the aliases that have the model as a target or as their shadow."""
        with self._database.read() as connection:
            return [alias.name for alias in using(connection, model)]

    def take_out(self, model: str, *, who: str | None = None) -> None:
        """Take the model out of its aliases. An alias whose only target it is is deleted."""
        with self._database.begin(alone=INPUTS) as connection:
            take_out(connection, model, who)


def _content(
    connection: Connection,
    name: str,
    targets: Sequence[AliasTarget],
    shadow: AliasShadow | None,
    guard: AliasGuard | None,
    require: AliasRequirement | Kept | None,
) -> Content:
    if isinstance(require, Kept):
        current = get(connection, name)
        require = current.require if current else None
    return Content(tuple(sorted(targets, key=lambda target: target.model)), shadow, guard, require)


# validation

_WHY_NOT = {
    ModelState.QUARANTINED: "it failed a check",
    ModelState.CHECKING: "wait until it is checked",
    UNCHECKED: "load it, and wait until it is checked",
    ModelState.MERGE_ONLY: "merge it, and give the result",
}


def _accepted(
    connection: Connection,
    name: str,
    content: Content,
    expected_version: int | None,
    judge: Judge | None,
    force: bool,
) -> tuple[Alias | None, Gate | None]:
    """The current alias, if its content may become `content`, and what its requirement says. Raises InvalidRequest and
    Conflict where it may not."""
    current = get(connection, name)
    is_repeated = current is not None and content_of(current) == content
    if not is_repeated:
        _expect(name, current, expected_version)
    _refuse_name(connection, name)
    _refuse_numbers(content)
    for target in content.targets:
        _refuse_unservable(connection, target.model, "targets")
    if content.shadow is not None:
        _refuse_unservable(connection, content.shadow.model, "shadow")
    return current, pass_gate(connection, name, current, content, judge, force=force)


def _expect(name: str, current: Alias | None, expected: int | None) -> None:
    version = current.version if current else 0
    if expected is not None and expected != version:
        found = f"is at version {version}" if version else "does not exist"
        raise InvalidRequest(
            f"{name} {found}, and version {expected} was expected: look at what it is now, and decide anew.",
            param="expected_version",
            code="alias_version_conflict",
        )


def _refuse_name(connection: Connection, name: str) -> None:
    if not is_alias_name(name):
        raise InvalidRequest(
            f"{quoted(name)} cannot name an alias: up to 128 letters, digits and . _ - : / (letters or digits first, "
            "also after a slash), not beginning with ft: and not ending in /history, /rollback, /shadow, /download, "
            "/report or /card.",
            param="name",
        )
    taken = select(models.c.name).where(models.c.name == name)
    if _is_base(connection, name) or connection.scalar(taken) is not None:
        raise InvalidRequest(f"{name} is a model's own name: give the alias another.", param="name")


def _refuse_numbers(content: Content) -> None:
    """Raises InvalidRequest for a wrong number of targets, a wrong weight or share, or a model that is named twice."""
    names = [target.model for target in content.targets]
    if not 1 <= len(names) <= MOST_TARGETS:
        raise InvalidRequest(f"An alias has 1 to {MOST_TARGETS} targets; got {len(names)}.", param="targets")
    for target in content.targets:
        if names.count(target.model) > 1:
            raise InvalidRequest(
                f"{target.model} is given twice: give it once, with one weight.", param="targets"
            )
        if not (math.isfinite(target.weight) and target.weight > 0):
            raise InvalidRequest(
                f"The weight of {target.model} is {target.weight}: it must be a number above 0.",
                param="targets",
            )
    shadow = content.shadow
    is_compared = content.guard is not None and content.guard.judge is not None
    if shadow is not None and shadow.model in names and not is_compared:
        raise InvalidRequest(f"{shadow.model} is a target: its shadow must be another model.", param="shadow")
    if shadow is not None and not 0 < shadow.share <= 1:
        raise InvalidRequest(
            f"The shadow's share is {shadow.share}: it must be above 0, and 1 at most.", param="shadow"
        )


def _refuse_unservable(connection: Connection, name: str, param: str) -> None:
    row = connection.execute(select(models).where(models.c.name == name)).one_or_none()
    model = TunedModel(**row._mapping) if row is not None else None
    if model is None and not _is_served(connection, name):
        if get(connection, name) is not None:
            raise InvalidRequest(f"{name} is an alias itself: name models.", param=param)
        raise InvalidRequest(f"No such model: {quoted(name)}.", param=param)
    if model is None:
        return
    if model.kind != ModelKind.ADAPTER and not _is_served(connection, name):
        raise InvalidRequest(
            f"{name} is a full model, and not deployed: deploy it first, with POST /v1/deployments.",
            param=param,
            code="model_not_served",
        )
    if model.state != ModelState.READY:
        state = model.shown_state
        raise InvalidRequest(f"{name} is {state}: {_WHY_NOT[state]}.", param=param, code="model_not_ready")
    if model.kind == ModelKind.ADAPTER and not _is_served(connection, model.base):
        raise InvalidRequest(f"The base of {name} is not among those served here.", param=param)


def _is_base(connection: Connection, name: str) -> bool:
    return connection.scalar(select(engines.c.name).where(engines.c.name == name)) is not None


def _is_served(connection: Connection, name: str) -> bool:
    """Whether an engine serves the model, or will soon. One that is being drained does not count."""
    stays = (engines.c.name == name, engines.c.state != EngineState.DRAINING)
    return connection.scalar(select(engines.c.name).where(*stays)) is not None


# versions


def _restorable(connection: Connection, earlier: AliasVersion) -> Content:
    """The content of an earlier version, without a shadow that can no longer be served. Raises InvalidRequest where a
    target can no longer be served."""
    content = content_of(earlier)
    for target in content.targets:
        _refuse_unservable(connection, target.model, "version")
    try:
        if content.shadow is not None:
            _refuse_unservable(connection, content.shadow.model, "version")
    except InvalidRequest:
        return content._replace(shadow=None)
    return content


def _planned(
    connection: Connection, name: str, to_version: int | None, expected_version: int | None
) -> tuple[Alias, AliasVersion]:
    current = get(connection, name)
    if current is None:
        raise NotFound(f"No such alias: {quoted(name)}.", param="name", code="alias_not_found")
    if expected_version == current.version - 1:
        now = version_of(connection, name, current.version)
        if now.rolled_back_to is not None and to_version in (None, now.rolled_back_to):
            return current, now  # a repeat of the same request
    _expect(name, current, expected_version)
    if to_version is None:
        earlier = before(connection, name, current.version)
        if earlier is None:
            raise InvalidRequest(f"{name} has no earlier version to go back to.", param="version")
        return current, earlier
    row = connection.execute(versions(name).where(alias_versions.c.version == to_version)).one_or_none()
    if row is None:
        raise InvalidRequest(
            f"{name} has no version {to_version}: it is at {current.version}.", param="version"
        )
    if not row.targets:
        raise InvalidRequest(
            f"In version {to_version} {name} was deleted: choose another one.", param="version"
        )
    return current, parse_version(row)
