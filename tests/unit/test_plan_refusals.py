"""Jobs that cannot fit this machine's GPU are refused with their plan, before anything is stored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.test_plan import qwen2_7b

from tunewright.api.fine_tuning import plan
from tunewright.api.fine_tuning.schemas import CreateJob, Tuning
from tunewright.config import Base, embedded_base_path
from tunewright.errors import InvalidRequest
from tunewright.plan.machine import GIB, Machine

REPORT = {"container": "jsonl", "ignored_fields": []}


@pytest.fixture
def context(tmp_path: Any) -> Any:
    """A service on a machine with a GPU, as far as a plan looks at it."""
    file = tmp_path / "file-1"
    file.write_bytes(b'{"prompt": "a", "completion": "b"}\n')
    models = SimpleNamespace(bases=[Base("tiny", str(embedded_base_path()))])
    serving = SimpleNamespace(max_lora_rank=64)
    return SimpleNamespace(
        settings=SimpleNamespace(models=models, serving=serving),
        bases=lambda: models.bases,
        devices=lambda: ["cuda:0"],
        store=SimpleNamespace(files=SimpleNamespace(get=lambda id: SimpleNamespace(report=REPORT))),
        workspace=SimpleNamespace(fetch_file=lambda id: tmp_path / id),
    )


def chosen(context: Any, monkeypatch: pytest.MonkeyPatch, memory: int, **tuning: Any) -> str:
    monkeypatch.setattr(plan, "machine_here", lambda _: Machine("NVIDIA Small", "cuda", 1, memory))
    options = Tuning(**tuning)
    body = CreateJob(model="tiny", training_file="file-1", tuning=options)
    return plan.fitting_type(context, body, "tiny", options)


def test_a_job_that_cannot_fit_is_refused_with_its_memory(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match=r"weights .* NVIDIA Small") as refused:
        chosen(context, monkeypatch, GIB // 4, type="full")
    assert refused.value.code == "does_not_fit"


def test_a_job_that_fits_is_not_refused(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(context, monkeypatch, 24 * GIB, type="full") == "full"
    assert chosen(context, monkeypatch, 24 * GIB) == "lora"


def test_auto_is_qlora_where_lora_does_not_fit_and_a_refusal_names_the_smallest_change(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "shape_of_base", lambda _: qwen2_7b())
    assert chosen(context, monkeypatch, 24 * GIB) == "lora"
    assert chosen(context, monkeypatch, 12 * GIB) == "qlora"
    with pytest.raises(InvalidRequest, match="type qlora") as refused:
        chosen(context, monkeypatch, 12 * GIB, type="lora")
    message = str(refused.value)
    assert 'set {"type": "qlora"} in tuning' in message
    for component in ("weights", "adapter", "gradients", "optimizer", "activations"):
        assert component in message
    assert "tuning.force" in message
    assert chosen(context, monkeypatch, 12 * GIB, type="lora", force=True) == "lora"


def test_force_refuses_nothing(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(context, monkeypatch, GIB // 4, type="full", force=True) == "full"


def test_nothing_is_refused_on_the_cpu(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context.devices = lambda: ["cpu"]
    assert chosen(context, monkeypatch, GIB // 4, type="full") == "full"


def test_only_rows_that_are_lines_say_how_long_they_are(
    context: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A JSON array may be one line, of which no example is as long."""
    (tmp_path / "file-1").write_bytes(b'{"prompt": "a", "completion": "' + b"b " * 2**20 + b'"}')
    memory = int(1.2 * GIB)
    with pytest.raises(InvalidRequest):
        chosen(context, monkeypatch, memory, type="full", batch_size=64, per_device_batch_size=64)
    monkeypatch.setitem(REPORT, "container", "json")
    assert chosen(context, monkeypatch, memory, type="full", batch_size=64, per_device_batch_size=64)
