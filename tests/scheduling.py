"""Which worker runs which tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

FOLDERS = {"shared", "checked", "abuse"}
"""Folders whose `conftest.py` has a service for all of its tests."""


class ByService(LoadScopeScheduling):  # type: ignore[misc]
    """Runs the tests of a file in one worker, in order, and so those of a folder whose tests share a service."""

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.split("::")[0])
        return str(path.parent if path.parent.name in FOLDERS else path)

    def remove_node(self, node: Any) -> str | None:
        """xdist (3.8) gives also the files that a crashed worker had completed to others, which then wait for ever for
        the results of no tests."""
        units = self.assigned_work[node]
        self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
        crashed: str | None = super().remove_node(node)
        return crashed
