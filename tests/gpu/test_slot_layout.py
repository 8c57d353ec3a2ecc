"""An answer keeps its adapter while others are loaded, on a GPU; and the fault of vLLM 0.24 and 0.25."""

from __future__ import annotations

from pathlib import Path

import pytest

from slots import without_slot_layout, wrong_tokens
from tunewright.engine.command import EngineOptions

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
GPU = EngineOptions(
    "cuda:0",
    gpu_memory_utilization=0.1,
    kv_cache_memory=2**30,
    max_loras=2,
    max_lora_rank=8,
    enforce_eager=True,
)


def test_an_answer_keeps_its_adapter_while_others_are_loaded(tmp_path: Path) -> None:
    assert wrong_tokens(tmp_path, GPU, {}) == 0


def test_it_does_not_where_vllm_computes_slots_anew_for_other_requests_only(tmp_path: Path) -> None:
    """So the test above would notice it."""
    assert wrong_tokens(tmp_path, GPU, without_slot_layout(tmp_path / "plugin")) > 0
