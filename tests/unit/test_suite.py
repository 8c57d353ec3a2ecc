"""The suite itself: files whose tests share a service run in one worker."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import SHARED

ENGINE = Path(__file__).parents[1] / "engine"


def test_files_that_share_a_service_are_grouped() -> None:
    files = {path.stem: path.read_text() for path in ENGINE.glob("test_*.py")}
    assert SHARED["service"] | SHARED["checking_service"] <= files.keys(), "a file that is not there"
    assert {name for name, text in files.items() if "checking_service" in text} == SHARED["checking_service"]
    uses = re.compile(r"\b(service: Service|client: Tunewright)\b")
    own = re.compile(r"\bdef service\(|\bstart_service\(")
    assert {name for name, text in files.items() if uses.search(text) and not own.search(text)} == SHARED[
        "service"
    ]
