"""Which worker runs which tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

SHARED = {
    "engine/service": {
        "test_bad_generations", "test_exports", "test_generation", "test_jobs", "test_metrics", "test_mixed_batches",
        "test_openai", "test_openai_generations", "test_registration", "test_reloads", "test_rendering",
        "test_swapping", "test_thousand_adapters",
    },
    "engine/checking_service": {"test_deployments", "test_elsewhere", "test_parity"},
    "process/service": {
        "test_cleanings", "test_dpo_service", "test_exports", "test_grpo_service", "test_mixed_files",
        "test_steps_service",
    },
}  # fmt: skip
"""Files by the folder and the fixture that starts the service they share. xdist's own groups (3.8) have no effect with
pytest 9.2, whose node ids it cannot change."""


class ByService(LoadScopeScheduling):  # type: ignore[misc]
    """Runs the tests of a file in one worker, in order, and so those of all files that share a service."""

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.split("::")[0])
        folder = path.parent.name + "/"
        shared = (name for name, files in SHARED.items() if name.startswith(folder) and path.stem in files)
        return next(shared, str(path))

    def remove_node(self, node: Any) -> str | None:
        """xdist (3.8) gives also the files that a crashed worker had completed to others, which then wait for ever for
        the results of no tests."""
        units = self.assigned_work[node]
        self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
        crashed: str | None = super().remove_node(node)
        return crashed
