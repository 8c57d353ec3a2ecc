"""Whether activations are kept or computed again: decided by memory, once, and told with its reason."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from test_defaults import resolved as resolved_with
from test_plan import planned, qwen2_7b

from tunewright.config import Settings
from tunewright.engine.gpus import NoDriver
from tunewright.kinds.fine_tuning import planning
from tunewright.kinds.fine_tuning.planning import decided_checkpointing, machine_beside_engines
from tunewright.plan.fitting import with_checkpointing
from tunewright.plan.machine import GIB, Machine, described
from tunewright.plan.memory import Run, estimate
from tunewright.plan.planning import Choice, Plan
from tunewright.registry.bases import inspect_base
from tunewright.trainer.spec import TrainingSpec


def choice_of(plan: Plan) -> Choice:
    return next(choice for choice in plan.options if choice.name == "gradient_checkpointing")


def decided(machine: Machine, **tuning: Any) -> tuple[bool | None, str]:
    options = resolved_with(rows=5000, device="cuda", tuning=tuning)
    found, why = with_checkpointing(options, qwen2_7b(), machine)
    return found.gradient_checkpointing, why


@pytest.mark.parametrize("type", ["lora", "qlora"])
def test_activations_are_kept_where_they_fit(type: str) -> None:
    plan = planned(described("H200"), type=type)

    assert choice_of(plan).value is False
    assert "need" in choice_of(plan).reason
    assert plan.fits


def test_they_are_computed_again_where_they_fit_no_longer_beside_what_serves() -> None:
    machine = replace(described("H200"), reserved=int(0.6 * described("H200").memory))

    plan = planned(machine, type="lora")

    assert choice_of(plan).value is True
    assert "only" in choice_of(plan).reason
    assert plan.fits


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_request_says_is_kept(asked: bool) -> None:
    choice = choice_of(planned(described("H200"), type="lora", gradient_checkpointing=asked))

    assert (choice.value, choice.source) == (asked, "request")


def test_on_the_cpu_activations_are_kept_as_before() -> None:
    assert choice_of(planned(Machine("?", "cpu", 1, 500 * GIB), type="lora")).value is False


def test_the_device_with_the_least_memory_decides_since_a_job_may_get_it() -> None:
    machine = described("H200")

    assert decided(machine)[0] is False
    assert decided(replace(machine, least=24 * GIB))[0] is True


def test_what_the_estimate_leaves_out_is_not_risked() -> None:
    assert decided(described("H200"), use_dora=True)[0] is True
    experts = replace(qwen2_7b(), experts=8)
    found, _ = with_checkpointing(resolved_with(device="cuda"), experts, described("H200"))
    assert found.gradient_checkpointing is True


def test_a_margin_is_left_free_that_is_larger_than_that_of_a_plan() -> None:
    needed = estimate(qwen2_7b(), Run("lora", "cuda", 4, 2048, False, 16)).total

    assert decided(Machine("one", "cuda", 1, int(needed / 0.84)))[0] is False
    assert decided(Machine("one", "cuda", 1, int(needed / 0.86)))[0] is True


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The memory of each GPU that the driver knows, by index."""
    known: dict[str, int] = {}

    def memory(index: str) -> tuple[str, int]:
        if index not in known:
            raise NoDriver("none")
        return "NVIDIA One", known[index]

    monkeypatch.setattr(planning, "gpu_memory", memory)
    return known


def machine_with(*devices: str) -> Machine:
    store: Any = SimpleNamespace(deployments=SimpleNamespace(everywhere=list))
    return machine_beside_engines(Settings(), store, devices)


def test_a_machine_knows_the_least_that_a_job_may_get(gpus: dict[str, int]) -> None:
    gpus |= {"0": 100 * GIB, "1": 80 * GIB}
    machine = machine_with("cuda:0", "cuda:1")

    # the engine of the base has its share of the first
    assert machine.free == 80 * GIB
    assert machine.least_free == pytest.approx(55 * GIB, rel=0.01)
    assert machine_with("cuda:0", "cuda:1", "cuda:2").least_free == 0


def test_on_a_gpu_whose_memory_is_not_known_activations_are_computed_again(gpus: dict[str, int]) -> None:
    base, options = inspect_base(Settings().models.bases[0]), resolved_with(device="cuda")

    unknown, why = decided_checkpointing(base, options, machine_with("cuda:0"))
    gpus["0"] = 80 * GIB
    known, _ = decided_checkpointing(base, options, machine_with("cuda:0"))

    assert (unknown.gradient_checkpointing, known.gradient_checkpointing) == (True, False)
    assert "not known" in why


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [(False, "cuda", False), (True, "cuda", True), (None, "cuda", True), (None, "cpu", False)],
)
def test_a_run_and_its_resumes_do_what_was_stored(stored: bool | None, device: str, expected: bool) -> None:
    """None, in jobs of earlier versions, is what these did."""
    options = resolved_with(device=device).model_copy(update={"gradient_checkpointing": stored})
    spec = TrainingSpec(
        job_id="one", base_name="b", base_path="/b", training_file="", seed=0, device=device, tuning=options
    )

    assert spec.checkpointing is expected
