"""What a job may ask of several GPUs: taken, shown, planned and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload
from tests.unit.test_plan import DATA, planned, qwen2_7b

from tunewright.api.fine_tuning.gpus import check_gpus
from tunewright.api.fine_tuning.schemas import Tuning
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.plan.cost import Rates, cost_of
from tunewright.plan.defaults import Resolved, batch_for, resolve
from tunewright.plan.fitting import run_of, with_less_memory
from tunewright.plan.machine import GIB, Machine, described
from tunewright.plan.memory import Run, estimate
from tunewright.plan.methods import METHODS, MethodName
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.time import Work, predict_seconds
from tunewright.scheduler.devices import visible_to

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 8
FOUR = [f"cuda:{number}" for number in range(4)]


def asked(api: TestClient, **tuning: Any) -> Any:  # noqa: F811
    body = {"model": BASE, "training_file": upload(api, ROWS)["id"], "tuning": tuning}
    return api.post("/v1/fine_tuning/jobs", json=body)


def resolved(**tuning: Any) -> Resolved:
    return resolve(
        tuning=TuningOptions(**tuning), hyperparameters=HyperparameterOptions(), rows=5000, context=2048, max_rank=64,
        device="cuda",
    )  # fmt: skip


def test_more_than_the_machine_has_is_refused_with_the_count(api: TestClient) -> None:  # noqa: F811
    refused = error(asked(api, gpus=2), 400)
    assert (refused["code"], refused["param"]) == ("not_enough_gpus", "tuning.gpus")
    assert "tuning.gpus is 2, and this machine has none" in refused["message"]
    assert "--cpu-processes" in refused["message"]
    assert asked(api, gpus=1).json()["tuning"]["gpus"] == 1


@pytest.mark.parametrize("what", ["zero2", "zero3"])
def test_deepspeed_is_refused_by_name(api: TestClient, what: str) -> None:  # noqa: F811
    refused = error(asked(api, sharding=what), 400)
    assert refused["param"] == "tuning.sharding"
    assert "DeepSpeed" in refused["message"]
    assert "use fsdp" in refused["message"]


@pytest.mark.parametrize(
    ("devices", "cpu_processes", "gpus", "said"),
    [
        (FOUR, 1, 5, "tuning.gpus is 5, and this machine has 4."),
        (["cpu"], 1, 2, "this machine has none. To try out"),
        (["cpu"], 3, 4, "runs jobs in up to 3 processes on its CPU"),
    ],
)
def test_the_message_counts_what_is_there(
    devices: list[str], cpu_processes: int, gpus: int, said: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_gpus("supervised", Tuning(gpus=gpus), "auto", devices, cpu_processes)
    assert said in str(caught.value)


def test_what_is_there_is_taken() -> None:
    check_gpus("supervised", Tuning(gpus=4), 32, FOUR, 1)
    check_gpus("supervised", Tuning(gpus=3), 33, ["cpu"], 3)
    check_gpus("supervised", Tuning(type="full", gpus=2, sharding="fsdp"), "auto", FOUR, 1)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("supervised", "dpo")])
def test_methods_that_train_on_one_gpu_refuse_several(method: MethodName) -> None:
    check_gpus(method, Tuning(gpus=1), "auto", FOUR, 1)
    check_gpus("dpo", Tuning(gpus=2), "auto", FOUR, 1)
    with pytest.raises(UnsupportedFeature, match=f"{method} trains on one GPU") as caught:
        check_gpus(method, Tuning(gpus=2), "auto", FOUR, 1)
    assert caught.value.param == "tuning.gpus"


def test_gpus_have_to_share_a_batch_evenly() -> None:
    with pytest.raises(InvalidRequest, match="3 GPUs cannot share a batch_size of 32 evenly: use 33"):
        check_gpus("supervised", Tuning(gpus=3), 32, FOUR, 1)


@pytest.mark.parametrize("tuning", [{"type": "lora", "gpus": 2}, {"gpus": 2}, {"type": "full"}])
def test_sharding_is_for_full_tuning_on_several_gpus(tuning: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"tuning\.sharding fsdp is for type full on several gpus"):
        check_gpus("supervised", Tuning(sharding="fsdp", **tuning), "auto", FOUR, 1)


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 5, 100, 5000])
def test_the_effective_batch_is_shared(gpus: int, rows: int) -> None:
    batch = batch_for(rows, gpus)
    assert batch % gpus == 0
    assert batch_for(rows) <= batch < batch_for(rows) + gpus
    options = resolved(gpus=gpus)
    per_step = options.gpus * options.per_device_batch_size * options.gradient_accumulation_steps
    assert per_step == options.batch_size


def test_accumulation_is_divided_by_the_gpus() -> None:
    one, two = resolved(), resolved(gpus=2)
    assert (one.batch_size, two.batch_size) == (32, 32)
    assert one.per_device_batch_size == two.per_device_batch_size
    assert one.gradient_accumulation_steps == 2 * two.gradient_accumulation_steps


def test_less_memory_keeps_what_the_gpus_share() -> None:
    smaller = with_less_memory(resolved(gpus=2, gradient_checkpointing=True))
    assert smaller is not None
    assert smaller.per_device_batch_size == 2
    assert 2 * smaller.per_device_batch_size * smaller.gradient_accumulation_steps == smaller.batch_size


@pytest.mark.parametrize(
    ("tuning", "sharding"),
    [
        ({"type": "full", "gpus": 2}, "fsdp"),
        ({"type": "full", "gpus": 2, "sharding": "none"}, "none"),
        ({"type": "full"}, "none"),
        ({"type": "lora", "gpus": 2}, "none"),
        ({"type": "qlora", "gpus": 2}, "none"),
    ],
)
def test_full_tuning_is_sharded_unless_told_otherwise(tuning: dict[str, Any], sharding: str) -> None:
    assert resolved(**tuning).sharding == sharding


def test_sharding_divides_what_is_shared() -> None:
    run = Run("full", "cuda", 1, 1024, True)
    one, four = (estimate(qwen2_7b(), replace(run, gpus=n, is_sharded=n > 1)) for n in (1, 4))
    assert four.weights == one.weights // 4
    assert four.optimizer == one.optimizer // 4
    assert four.gradients <= one.gradients // 4
    assert one.total > 4 * 24 * GIB, "the machine's cards hold it together only"


def test_adapters_have_the_base_on_each_gpu_and_a_copy_of_their_gradients() -> None:
    run = Run("lora", "cuda", 1, 1024, True, rank=16)
    one, two = estimate(qwen2_7b(), run), estimate(qwen2_7b(), replace(run, gpus=2))
    assert two.weights == one.weights
    assert 0 < two.total - one.total < 0.5 * GIB


def test_a_plan_says_how_many_gpus_hold_what_one_does_not() -> None:
    machine = described("8xA100-80GB")
    plan = planned(machine, type="full")
    assert not plan.fits
    assert plan.sharding is not None
    gpus = int(plan.sharding.split()[0])
    assert f'set {{"type": "full", "gpus": {gpus}}} in tuning' in plan.sharding
    shared = planned(machine, type="full", gpus=gpus)
    assert shared.fits
    assert not planned(machine, type="full", gpus=gpus - 1).fits


def test_a_plan_on_too_few_gpus_says_how_many_there_are() -> None:
    plan = planned(Machine("tiny", "cuda", 1, 12 * GIB), type="qlora", max_length=8192)
    if plan.sharding is not None:
        assert "this machine has 1" in plan.sharding


def test_gpus_take_a_part_of_the_time_and_cost_the_same() -> None:
    one, two = (run_of(resolved(gpus=gpus), DATA, "cuda") for gpus in (1, 2))
    alone, together = (predict_seconds(qwen2_7b(), run, Work(10**6), 989) for run in (one, two))
    assert alone is not None
    assert together is not None
    assert together.most == pytest.approx(alone.most / 2)
    rates = Rates(price_per_hour=2.0)
    assert cost_of(alone.most, rates) == cost_of(together.most, rates, devices=2)


def test_the_launcher_sees_the_gpus_of_its_job() -> None:
    assert visible_to("cuda:1", "cuda:3") == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert visible_to("cuda:2") == {"CUDA_VISIBLE_DEVICES": "2"}
    assert visible_to("cpu") == {"CUDA_VISIBLE_DEVICES": ""}
