"""Which worker runs which tests, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

FOLDERS = {"shared", "checked", "abuse"}
"""Folders whose `conftest.py` has a service for all of its tests."""

FORKED = {
    "tests/engine/test_resume.py", "tests/engine/test_trainer_failures.py", "tests/process/test_dpo_kills.py",
    "tests/process/test_grpo_kills.py", "tests/process/test_parity_reference.py", "tests/process/test_ranks.py",
    "tests/unit/test_general_text.py",
}  # fmt: skip
"""Files whose tests run trainers by hand: forks of a process that imports for 8 s of processor time (`forked.py`). Each
worker that has such tests has one of it."""

_WAITING = ("engine", "process")
"""Folders whose tests wait for other processes more than they compute."""
_WAITING_UNTIL = 0.8
"""The part of the run in which these begin: they take long, and no worker should wait for another at the end."""


def scope_of(nodeid: str) -> str:
    """What runs in one worker, in order: the tests of a file, of a folder whose tests share a service, or of the files
    whose tests share the process that trainers are forks of."""
    path = Path(nodeid.split("::")[0])
    if str(path) in FORKED:
        return "tests/process/forked"
    return str(path.parent if path.parent.name in FOLDERS else path)


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests in an order in which those that wait and those that compute alternate, so that the processors are used
    by the ones while the others wait."""
    scopes: dict[str, list[pytest.Item]] = {}
    for item in items:
        scopes.setdefault(scope_of(item.nodeid), []).append(item)
    waiting = [scope for scope in scopes if set(_WAITING) & set(Path(scope).parts)]
    computing = [scope for scope in scopes if scope not in waiting]
    place = {scope: _WAITING_UNTIL * n / len(waiting) for n, scope in enumerate(waiting)}
    place |= {scope: (n + 1) / len(computing) for n, scope in enumerate(computing)}
    return [item for scope in sorted(scopes, key=lambda scope: place[scope]) for item in scopes[scope]]


class ByService(LoadScopeScheduling):  # type: ignore[misc]
    """Runs what `scope_of` names in one worker, in order."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """xdist (3.8) gives also the files that a crashed worker had completed to others, which then wait for ever for
        the results of no tests."""
        units = self.assigned_work[node]
        self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
        crashed: str | None = super().remove_node(node)
        return crashed
