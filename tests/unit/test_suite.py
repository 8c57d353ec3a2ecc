"""The suite itself: files whose tests share a service run in one worker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import SHARED

ROOT = Path(__file__).parents[1]


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
