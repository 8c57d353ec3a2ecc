"""`POST /v1/fine_tuning/plan`: what a job would need, before it is created; and jobs that cannot fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from tunewright.api.fine_tuning.data import AUTO, Data, check_chat_template, data_options
from tunewright.api.fine_tuning.gpus import check_gpus
from tunewright.api.fine_tuning.method_schemas import Hyperparameters, Method
from tunewright.api.fine_tuning.methods import (
    batch_size_of,
    check_method,
    check_rows_at_a_time,
    check_targets,
    hyperparameters_of,
    without_dropout,
)
from tunewright.api.fine_tuning.schemas import CreateJob
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.jobs.creation import check_training_file
from tunewright.api.models.bases import named_base
from tunewright.engine.trust import trusts_code
from tunewright.errors import InvalidRequest
from tunewright.kinds.data import DataOptions
from tunewright.kinds.fine_tuning.planning import (
    PlannedFile,
    earlier_jobs,
    least_data,
    machine_beside_engines,
    machine_described,
    plan_job,
    rates_of,
    shape_of_base,
)
from tunewright.plan.changes import Step
from tunewright.plan.cost import Rates
from tunewright.plan.machine import GIB, Machine
from tunewright.plan.methods import METHODS
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.planning import Choice, MethodPlan, Plan, PlannedRows, Warning, make_plan
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus
from tunewright.wire import Body, Wire

router = APIRouter(prefix="/v1/fine_tuning/plan", tags=["Fine-tuning"])


class CreatePlan(Body):
    """A job that is not created: its model, file and options, and the machine."""

    model: str = Field(max_length=512, description="A named base.")
    training_file: str = Field(max_length=64, description="Id of an uploaded file.")
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    tuning: Tuning | None = None
    chat_template: Annotated[str, Field(max_length=1_000_000)] | None = None
    data: Data | None = None
    machine: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None,
        description='A machine such as "8xA100-80GB" or "H100"; this one, beside its engines, where absent.',
    )


class PlanObject(Wire):
    """What a job would need. Memory in bytes of one device, at the peak; times in seconds."""

    object: Literal["fine_tuning.plan"] = "fine_tuning.plan"
    model: str
    training_file: str
    parameters: int
    machine: str
    devices: int
    available: int = Field(
        description="Bytes of one device that the job may use, beside the engines that serve."
    )
    rows: int = Field(description="Different rows of an epoch.")
    counted_rows: int | None = Field(
        description="Rows that were tokenized for the plan, where it would have taken long for all: tokens, steps and "
        "times are estimated from these. null: all were, and tokens and steps are exact."
    )
    tokens: int = Field(description="Of one epoch, after cutting at `max_length`.")
    files: list[PlannedRows] = Field(description="What an epoch has of each training file.")
    steps: int
    type: str = Field(description="The method of `options`, `steps`, `fits` and `change`.")
    advised: str = Field(
        description="The method that is advised: full, lora or qlora. `auto` is never full, which has to be asked for."
    )
    why: str
    methods: list[MethodPlan]
    options: list[Choice]
    fits: bool
    change: Step | None = Field(description="The smallest change that makes the job fit, in `tuning`.")
    sharding: str | None
    warnings: list[Warning]

    @classmethod
    def of(cls, body: CreatePlan, plan: Plan) -> PlanObject:
        return cls(model=body.model, training_file=body.training_file, **plan.model_dump())


@router.post("", summary="Plan a fine-tuning job", responses=responses(400, 404, 429, 503, 507))
async def create(context: Context, body: CreatePlan) -> PlanObject:
    """What a job would need and what is advised, without loading weights. The file is tokenized; nothing is stored."""
    return PlanObject.of(body, await context.measuring.run(_plan, context, body))


def check_mix(
    context: ServiceContext, training_file: str, data: DataOptions, method: str
) -> dict[str, FileRecord]:
    """The records of the training files beside the first, by their ids. Raises InvalidRequest."""
    return {
        one.file: check_training_file(
            context, f"data.mix.{number}.file", one.file, data, method, code="invalid_training_file"
        )
        for number, one in enumerate(data.mix or ())
        if one.file != training_file
    }


def _plan(context: ServiceContext, body: CreatePlan) -> Plan:
    data = data_options(body.data, AUTO if body.data and body.data.validation_share else None)
    method, tuning = body.method or Method(), body.tuning or Tuning()
    first = check_training_file(context, "training_file", body.training_file, data, method.type)
    records = {body.training_file: first} | check_mix(context, body.training_file, data, method.type)
    check_chat_template(body.chat_template)
    check_method(method, tuning)
    check_targets(tuning)
    check_rows_at_a_time(method, tuning, hyperparameters_of(body), data)
    base = named_base(context, body.model)
    if body.machine:
        machine = machine_described(body.machine)
        described = [f"cuda:{n}" for n in range(machine.count)]
        check_gpus(method.type, tuning, batch_size_of(body, tuning), described, 1)
    else:
        machine = machine_here(context)
        cpu_processes = context.settings.jobs.cpu_processes
        check_gpus(method.type, tuning, batch_size_of(body, tuning), context.devices(), cpu_processes)
    return plan_job(
        base,
        [
            PlannedFile(
                context.workspace.fetch_file(id), id, weight, records[id].sha256, _rows_of(records[id])
            )
            for id, weight in data.weights(body.training_file).items()
        ],
        machine,
        tuning=TuningOptions(**without_dropout(method, tuning).model_dump()),
        hyperparameters=HyperparameterOptions(**hyperparameters_of(body).model_dump()),
        method=method.type,
        max_rank=context.settings.serving.max_lora_rank,
        chat_template=body.chat_template,
        data=data,
        cache=context.workspace.token_cache,
        trust_remote_code=trusts_code(context.settings.models, context.store, base.name),
        earlier=[] if body.machine else earlier_jobs(context.store, base, machine),
        rates=Rates() if body.machine else rates_of(context.settings),
    )


def _rows_of(file: FileRecord) -> int | None:
    """All rows of a file that was checked without a fault."""
    report = file.report or {}
    return report.get("rows") if file.status is FileStatus.PROCESSED else None


def machine_here(context: ServiceContext) -> Machine:
    """This machine beside the engines of its bases and deployments."""
    return machine_beside_engines(context.settings, context.store, context.devices())


def fitting_type(context: ServiceContext, body: CreateJob, base: str, tuning: Tuning) -> str:
    """The method of a job on this machine: the one asked for, and for auto lora, or qlora where lora does not fit.

    Raises InvalidRequest, with the plan, where even the least that the job can need does not fit the GPU. On the CPU
    nothing is refused: its memory is shared, and can be swapped. `tuning.force` refuses nothing.
    """
    asked = "lora" if tuning.type == "auto" else tuning.type
    bases = {one.name: one for one in context.settings.models.bases}
    if base not in bases or tuning.force or all(device == "cpu" for device in context.devices()):
        return asked
    machine = machine_here(context)
    if machine.device == "cpu":
        return asked  # the driver tells no memory
    shape = shape_of_base(named_base(context, base))
    method = (body.method or Method()).type
    data = least_data(_whose_rows_are_lines(context, body), 1, METHODS[method].sequences)
    plan = None
    for type in ("lora", "qlora") if tuning.type == "auto" else (asked,):
        plan = make_plan(
            shape,
            data,
            machine,
            tuning=TuningOptions(**tuning.model_copy(update={"type": type}).model_dump()),
            hyperparameters=HyperparameterOptions(),
            method=method,
            max_rank=context.settings.serving.max_lora_rank,
        )
        if plan.fits:
            return type
    assert plan is not None
    raise InvalidRequest(_unfit(plan, type), param="tuning", code="does_not_fit")


def _whose_rows_are_lines(context: ServiceContext, body: CreateJob) -> Path | None:
    """The training file where each of its lines is a row and nothing of it is left out."""
    record = context.store.files.get(body.training_file)
    report = record.report if record is not None else None
    if report is None or report["container"] != "jsonl" or report["ignored_fields"]:
        return None
    return context.workspace.fetch_file(body.training_file) if body.data is None else None


def _unfit(plan: Plan, type: str) -> str:
    memory = next(method.memory for method in plan.methods if method.type == type)
    parts = ", ".join(f"{name} {count / GIB:.2f}" for name, count in memory.items() if name != "total")
    advice = plan.sharding or "use a smaller model"
    if plan.change is not None:
        advice = f"{plan.change.change} makes it fit: set {json.dumps(plan.change.options)} in tuning"
    return (
        f"The job does not fit: {type} needs at least {memory['total'] / GIB:.2f} GiB ({parts}), and a job may use "
        f"{plan.available / GIB:.2f} GiB of {plan.machine}, beside the engines that serve. {advice}. "
        "POST /v1/fine_tuning/plan shows the whole plan; tuning.force tries it anyway."
    )
