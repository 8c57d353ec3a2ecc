"""vLLM's renderer is imported without torch's compiler, which is there again afterwards."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tunewright.imports import without_compiler


def test_nothing_is_compiled_nor_corrected_while_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("import vllm.env_override\n")
    (tmp_path / "vllm" / "env_override.py").write_text("raise AssertionError('it corrects the compiler')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("vllm", "vllm.env_override"):
        monkeypatch.setitem(sys.modules, name, sys)  # so that what was there is there again afterwards
        monkeypatch.delitem(sys.modules, name)
    compiler = torch.compile

    def function() -> int:
        return 7

    with without_compiler():
        import_module("vllm")
        assert not gc.isenabled()
        assert torch.compile(function) is function
        assert torch.compile(dynamic=True, backend="inductor")(function) is function
    assert gc.isenabled()
    assert torch.compile is compiler
    assert "vllm.env_override" not in sys.modules


def test_where_vllm_is_imported_already_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)
    compiler = torch.compile
    with without_compiler():
        assert torch.compile is compiler
