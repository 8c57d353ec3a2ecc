"""The suite itself ends also where a worker crashes; tests that share a process run in one worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scheduling import FOLDERS, FORKED, scope_of

ROOT = Path(__file__).parents[1]
HOOK = """
from scheduling import ByService


def pytest_xdist_make_scheduler(config, log):
    return ByService(config, log)
"""
CRASH = """
import os
from pathlib import Path


def test_it_crashes_once():
    marker = Path(__file__).with_suffix(".crashed")
    if not marker.exists():
        marker.touch()
        os._exit(9)
"""


def test_a_crashed_worker_is_told_and_its_other_tests_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOK)
    for number in range(6):
        text = "def test_a():\n    pass\n\n\ndef test_b():\n    pass\n"
        (tmp_path / f"test_{number}.py").write_text(text + (CRASH if number == 3 else ""))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "1",
            "--dist",
            "loadscope",
            "--no-loadscope-reorder",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1
    assert "crashed while running" in done.stdout
    assert "1 failed, 13 passed" in done.stdout, done.stdout


def test_files_that_run_trainers_by_hand_share_their_fork_server() -> None:
    files = [path for name in ("engine", "process", "unit") for path in (ROOT / name).rglob("test_*.py")]
    running = {path for path in files if "\nfrom forked import " in path.read_text()}
    found = {str(path.relative_to(ROOT.parent)) for path in running if path.parent.name not in FOLDERS}

    assert found == FORKED
    assert len({scope_of(f"{name}::test_it") for name in FORKED}) == 1
