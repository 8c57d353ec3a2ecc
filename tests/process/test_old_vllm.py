"""A whole service where a vLLM is installed that mixes adapters up."""

from __future__ import annotations

from pathlib import Path

import httpx
from tests.engine.conftest import wait_until

from without_vllm import BASE, old_vllm, start_without_vllm


def test_no_engine_is_started_on_it_and_ready_says_why(tmp_path: Path) -> None:
    service = start_without_vllm(tmp_path / "data", fakes=old_vllm(tmp_path / "old", "0.25.1"))
    try:
        wait_until(lambda: "vllm 0.25.1 is installed" in ready(service.url), 60, "the reason is told")
        assert not (service.data_dir / "engines" / BASE / "engine.log").exists()
    finally:
        service.stop()


def ready(url: str) -> str:
    try:
        answer = httpx.get(f"{url}/ready")
    except httpx.HTTPError:
        return ""
    assert answer.status_code == 503
    return answer.text
