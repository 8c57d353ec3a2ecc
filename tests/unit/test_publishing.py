"""A finished job's products are listed with what they were made from; broken ones are not listed at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adapters import lora_tensors, write_adapter, zeros
from rows import FILE, create_job, resolved
from tunewright.api.fine_tuning.schemas import JobObject
from tunewright.config import Settings
from tunewright.errors import InvalidAdapter
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.fine_tuning.publishing import publish_products
from tunewright.kinds.kind import Service
from tunewright.plan.cost import Cost
from tunewright.plan.forgetting import Forgetting
from tunewright.plan.prediction import Planned
from tunewright.plan.time import Measured, TimeRange
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job, Lineage
from tunewright.store.states import JobState, Source
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingResult

pytestmark = pytest.mark.each_database

BASE = BaseInfo("tiny", Path("/m"), "f" * 64, 64, None, None)
BROKEN = lora_tensors() | {"base_model.model.x.lora_A.weight": zeros(4, 4, value=math.nan)}


def service(store: Store, data: Workspace) -> Service:
    return Service(Settings(base=["tiny=/m"], parity="off"), store, data, on_gpu=False)


def job(store: Store, type: str = "lora") -> Job:
    return create_job(store, state=JobState.RUNNING, resolved=resolved(type), seed=7, parent_sha256=None)


def trained(data: Workspace, job: Job, *steps: int, broken: tuple[int, ...] = ()) -> JobFolder:
    """The job's folder, with a different adapter for the end (step 0) and for each of `steps`."""
    folder = JobFolder(data.job(job.id))
    for step in (0, *steps):
        path = folder.checkpoints / f"step-{step}" if step else folder.adapter
        write_adapter(path, None, BROKEN if step in broken else lora_tensors(value=step + 1.0))
        (path / "complete.json").write_text("{}")
    return folder


def test_a_job_keeps_what_was_planned_beside_what_was_measured(store: Store, data: Workspace) -> None:
    made = job(store)
    planned = Planned(
        steps=4, tokens=90, peak_bytes=7, seconds=TimeRange(least=1.0, most=2.0, basis="an earlier job")
    )
    measured = Measured(device="cpu", seconds=1.5, tokens=60, length=9, peak_bytes=8)
    cost = Cost(kwh=0.5, price=2.0, currency="EUR")
    forgetting = Forgetting(kl=0.2, low=0.1, high=0.3, loss=2.5, loss_before=2.4, tokens=2000)
    result = TrainingResult(
        status="succeeded", planned=planned, measured=measured, cost=cost, forgetting=forgetting
    )
    publish_products(service(store, data), made, BASE, trained(data, made), result)
    ended = store.jobs.get(made.id)
    assert ended is not None
    shown = JobObject.of(ended).model_dump()
    assert shown["planned"] == planned.model_dump()
    assert shown["measured"] == {**measured.model_dump(exclude={"length"}), "cost": cost.model_dump()}
    assert shown["forgetting"] == {**forgetting.model_dump(), "is_beyond": False}


def test_the_product_of_the_method_reward_is_a_whole_model_whatever_was_trained(
    store: Store, data: Workspace
) -> None:
    made = create_job(
        store,
        state=JobState.RUNNING,
        resolved=resolved("lora"),
        request={"method": "reward"},
        parent_sha256=None,
    )
    folder = trained(data, made, 1, 2)
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    result = TrainingResult(status="succeeded", checkpoints={1: {"train_loss": 2.0}, 2: {"train_loss": 1.0}})
    publish_products(service(store, data), made, BASE, folder, result)
    [model] = store.models.list()[0]
    assert (model.kind, model.method, model.rank, model.checkpoint_step) == ("full", "reward", None, None)
    ended = store.jobs.get(made.id)
    assert ended is not None
    assert (ended.state, ended.model) == (JobState.SUCCEEDED, model.name)


def test_each_product_tells_what_it_was_made_from(store: Store, data: Workspace) -> None:
    made = job(store)
    metrics = {1: {"train_loss": 2.0}, 2: {"train_loss": 1.0, "valid_loss": 1.5}}
    result = TrainingResult(status="succeeded", metrics={"train_loss": 0.5}, checkpoints=metrics)
    publish_products(service(store, data), made, BASE, trained(data, made, 1, 2), result)
    listed = {model.checkpoint_step: model for model in store.models.list()[0]}
    assert {step: model.desired for step, model in listed.items()} == {
        None: "loaded",
        1: "unloaded",
        2: "unloaded",
    }
    common: dict[str, Any] = {"training_file": FILE["id"], "training_sha256": FILE["sha256"], "seed": 7}
    assert listed[None].lineage == Lineage(**common, metrics={"train_loss": 0.5})
    assert listed[1].lineage == Lineage(**common, metrics=metrics[1])
    assert listed[2].lineage == Lineage(**common, metrics=metrics[2])
    assert {model.source for model in listed.values()} == {Source.JOB}
    assert listed[None].base_fingerprint == BASE.fingerprint


def test_the_template_of_a_job_is_that_of_its_products(store: Store, data: Workspace) -> None:
    """Else what is served would be asked otherwise than it was trained."""
    request = {"chat_template": "{{ messages }}"}
    made = create_job(store, state=JobState.RUNNING, resolved=resolved("lora"), request=request)
    result = TrainingResult(status="succeeded", checkpoints={1: {}})
    publish_products(service(store, data), made, BASE, trained(data, made, 1), result)
    assert [model.chat_template for model in store.models.list()[0]] == ["{{ messages }}"] * 2


def test_a_full_model_tells_it_too(store: Store, data: Workspace) -> None:
    made = job(store, "full")
    folder = JobFolder(data.job(made.id))
    folder.model.mkdir(parents=True)
    (folder.model / "config.json").write_text(json.dumps({}))
    publish_products(service(store, data), made, BASE, folder, TrainingResult(status="succeeded"))
    (model,) = store.models.list()[0]
    assert model.lineage is not None
    assert (model.lineage.seed, model.lineage.metrics) == (7, None)


@pytest.mark.parametrize("broken", [0, 2])
def test_a_number_that_is_none_is_not_listed(store: Store, data: Workspace, broken: int) -> None:
    made = job(store)
    result = TrainingResult(status="succeeded", checkpoints={1: {}, 2: {}})
    with pytest.raises(InvalidAdapter, match=r"x\.lora_A\.weight has numbers that are NaN"):
        publish_products(
            service(store, data), made, BASE, trained(data, made, 1, 2, broken=(broken,)), result
        )
    assert store.models.list()[0] == []
    ended = store.jobs.get(made.id)
    assert ended is not None
    assert ended.state is JobState.RUNNING, "the scheduler says how it ends"
    assert list(data.tmp.iterdir()) == []
