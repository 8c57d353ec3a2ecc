"""The suite itself: files whose tests share a service run in one worker, and it ends also where a worker crashes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scheduling import SHARED

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


@pytest.mark.parametrize("folder", ["engine", "process"])
def test_files_that_share_a_service_are_grouped(folder: str) -> None:
    files = {path.stem: path.read_text() for path in (ROOT / folder).glob("test_*.py")}
    uses = re.compile(r"^(async )?def \w+\([^)]*\b(service: Service|client: Tunewright)\b", re.MULTILINE)
    own = re.compile(r"\bdef service\(|\bstart_(service|without_vllm)\(")
    sharing = {name for name, text in files.items() if uses.search(text) and not own.search(text)}
    assert sharing == SHARED[f"{folder}/service"]


def test_files_that_share_a_service_with_the_parity_check_are_grouped() -> None:
    files = {path.stem: path.read_text() for path in (ROOT / "engine").glob("test_*.py")}
    sharing = {name for name, text in files.items() if "checking_service" in text}
    assert sharing == SHARED["engine/checking_service"]


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
