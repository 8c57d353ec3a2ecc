"""Engines run on a vLLM that keeps adapters apart; on an older one they are not started, and the reason is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tunewright.engine.versions import OLDEST_VLLM, unsuited_vllm
from without_vllm import old_vllm


@pytest.mark.parametrize(
    ("version", "suits"), [("0.24.0", False), ("0.25.1", False), ("0.26.0", True), ("1.0", True)]
)
def test_versions_that_mix_adapters_up_are_refused(
    version: str, suits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(old_vllm(tmp_path, version)))
    reason = unsuited_vllm()
    assert (reason is None) == suits
    if reason is not None:
        assert f"vllm {version} is installed" in reason
        assert "install 0.26 or newer" in reason


def test_the_gpu_set_brings_none_of_them() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (wanted,) = [one for one in project["optional-dependencies"]["gpu"] if one.startswith("vllm")]
    assert wanted.startswith(f"vllm>={OLDEST_VLLM[0]}.{OLDEST_VLLM[1]},")
