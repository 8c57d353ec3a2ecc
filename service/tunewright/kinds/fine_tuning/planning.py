"""Makes the plan of a fine-tuning job from files: looks at the machine, the model's headers and the rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tunewright.config import Settings
from tunewright.engine.command import EngineOptions
from tunewright.engine.gpus import NoDriver, gpu_memory
from tunewright.engine.placement import options_of_bases
from tunewright.errors import InvalidRequest
from tunewright.kinds.data import DataOptions
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.plan.cost import Rates
from tunewright.plan.data_shape import DataShape, data_shape
from tunewright.plan.defaults import Resolved, max_length_for
from tunewright.plan.fitting import run_of, with_checkpointing
from tunewright.plan.machine import Machine, UnknownMachine, card_of, described
from tunewright.plan.memory import trained_parameters
from tunewright.plan.methods import METHODS
from tunewright.plan.mixing import FileShape, mixed_shape
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.pitfalls import warnings
from tunewright.plan.planning import Plan, make_plan
from tunewright.plan.shape import ModelShape, UnknownShape
from tunewright.plan.time import Earlier
from tunewright.registry.bases import BaseInfo
from tunewright.registry.model_shape import quantization_of, read_shape
from tunewright.registry.safetensors_file import BadTensors
from tunewright.rows.cache import TokenCache
from tunewright.rows.lengths import NotMeasured, Question, shape_of
from tunewright.store.store import Store

_REMEMBERED = 50
"""Finished jobs whose speed is looked at."""
_BYTES_OF_A_TOKEN = 16
"""More than a token of any text has on average: lengths from it are lower bounds."""
PLANNED_IN = 300.0
"""Seconds in which each file of a plan is tokenized: whoever asked waits for it."""
_LOOKED_AT = 64 * 2**20
"""Bytes of a file that are read for such a bound."""


def this_machine(devices: Sequence[str], engines: Mapping[str, EngineOptions]) -> Machine:
    """The machine with these devices ("cuda:0" or "cpu"), beside these engines: its GPU with the most memory left."""
    found = [_gpu(device, engines) for device in devices if device.startswith("cuda")]
    known = [gpu for gpu in found if gpu is not None]
    if known:
        best = max(known, key=lambda gpu: gpu.free)
        least = min(gpu.free for gpu in known) if len(known) == len(found) else 0
        return replace(best, count=len(known), least=least)
    memory = psutil.virtual_memory()
    return Machine("this machine's CPU", "cpu", 1, memory.total, memory.total - memory.available)


def rates_of(settings: Settings) -> Rates:
    """What the operator says that a device costs."""
    jobs = settings.jobs
    return Rates(price_per_hour=jobs.price_per_hour, currency=jobs.currency, watts=jobs.device_watts)


def machine_beside_engines(settings: Settings, store: Store, devices: Sequence[str]) -> Machine:
    """This machine beside the engines of the service's bases and deployments."""
    engines = options_of_bases(settings, devices)
    engines |= {one.model: EngineOptions(**one.options) for one, _ in store.deployments.everywhere()}
    return this_machine(devices, engines)


def decided_checkpointing(base: BaseInfo, resolved: Resolved, machine: Machine) -> tuple[Resolved, str]:
    """The options of a job on a GPU with `gradient_checkpointing` decided, and why (`plan.fitting`)."""
    try:
        shape = shape_of_base(base)
    except InvalidRequest:
        shape = None
    return with_checkpointing(resolved, shape, machine)


def _gpu(device: str, engines: Mapping[str, EngineOptions]) -> Machine | None:
    try:
        name, memory = gpu_memory(device.partition(":")[2])
    except NoDriver:
        return None
    share = sum(one.gpu_memory_utilization or 0.0 for one in engines.values() if device in one.devices)
    card = card_of(name)
    return Machine(
        name,
        "cuda",
        1,
        memory,
        int(share * memory),
        card.teraflops if card else None,
        card.watts if card else None,
    )


def machine_described(text: str) -> Machine:
    """Raises InvalidRequest, with the cards that are known."""
    try:
        return described(text)
    except UnknownMachine as error:
        raise InvalidRequest(f"machine: {error}.", param="machine") from error


@dataclass(frozen=True)
class PlannedFile:
    """A training file of a plan."""

    path: Path
    name: str
    weight: float = 1.0
    sha256: str = ""
    """Where there is none, its tokens are neither looked up in the cache, nor kept."""
    rows: int | None = None
    """All of its rows, where they are known."""


def plan_job(
    base: BaseInfo,
    files: Sequence[PlannedFile],
    machine: Machine,
    *,
    tuning: TuningOptions,
    hyperparameters: HyperparameterOptions,
    max_rank: int,
    method: str = "supervised",
    chat_template: str | None = None,
    data: DataOptions = DataOptions(),
    cache: TokenCache | None = None,
    trust_remote_code: bool = False,
    earlier: Sequence[Earlier] = (),
    rates: Rates = Rates(),
    seconds: float | None = None,
) -> Plan:
    """The plan of a job. The files are tokenized in processes of their own, unless the cache has their tokens: each
    for so many seconds at most (`PLANNED_IN`), after which its number of rows tells the rest. `earlier`: finished
    jobs on this base and machine. Raises InvalidRequest."""

    refuse_quantized(base)

    def measured(file: PlannedFile) -> DataShape:
        question = Question(
            base=base.path,
            file=file.path,
            source=file.sha256,
            reading=data.reading(bool(chat_template or base.chat_template), "training"),
            chat_template=chat_template,
            max_length=max_length_for(tuning, base.context),
            truncation=tuning.truncation,
            trust_remote_code=trust_remote_code,
            seconds=PLANNED_IN if seconds is None else seconds,
        )
        try:
            part = 1 - (data.validation_share or 0.0)
            return shape_of(question, cache, round(part * file.rows) if file.rows else None)
        except NotMeasured as error:
            if error.param == "model":
                raise InvalidRequest(
                    f"{base.name} cannot be planned with: {error}.", param="model"
                ) from error
            what = "The file" if len(files) == 1 else f"The file {file.name}"
            param = "training_file" if file is files[0] else "data.mix"
            raise InvalidRequest(f"{what} cannot be planned with: {error}.", param=param) from error

    shape = shape_of_base(base)
    parts = [FileShape(file.name, file.weight, measured(file)) for file in files]
    return make_plan(
        shape,
        mixed_shape([(part.shape, part.weight) for part in parts]),
        machine,
        tuning=tuning,
        hyperparameters=hyperparameters,
        max_rank=max_rank,
        method=method,
        has_flash_attention=_has_flash_attention(),
        earlier=earlier,
        files=parts,
        rates=rates,
    )


def finished_jobs(store: Store, base: BaseInfo) -> list[Earlier]:
    """The finished jobs that trained this base and tell what they took, newest first. Not those that made their answers
    while they trained, of which steps take longer than their tokens say."""
    found = []
    for job in store.jobs.succeeded_on(base.name, "fine_tuning", _REMEMBERED):
        result, resolved = job.result, job.resolved
        assert isinstance(resolved, Resolved)
        measured = result.measured if isinstance(result, FineTuningResult) else None
        if measured is not None and measured.seconds > 0 and not METHODS[resolved.method].generates:
            rows = data_shape(1, [(measured.length, measured.length)])
            device = "cpu" if measured.device == "cpu" else "cuda"
            run = replace(run_of(resolved, rows, device), compiled=measured.compiled)
            found.append(Earlier(job.id, run, measured))
    return found


def earlier_jobs(store: Store, base: BaseInfo, machine: Machine) -> list[Earlier]:
    """Those of them on this machine."""
    device = machine.name if machine.device == "cuda" else "cpu"
    return [one for one in finished_jobs(store, base) if one.measured.device == device]


def least_data(file: Path | None, rows: int, sequences: int = 1) -> DataShape:
    """What a file of JSONL has at least, from its bytes alone: for refusing what cannot fit, without tokenizing. None:
    a file of which nothing is known. The content of a row is in so many sequences, of which one has an equal share."""
    longest = read = 0
    if file is None:
        return data_shape(rows, [(1, 1)])
    with file.open("rb") as lines:
        for line in lines:
            longest, read = max(longest, len(line) // _BYTES_OF_A_TOKEN), read + len(line)
            if read > _LOOKED_AT:
                break
    return data_shape(rows, [(max(1, longest // sequences), 1)])


def refuse_quantized(base: BaseInfo) -> None:
    """Raises InvalidRequest where the base's weights are quantized: no method trains on them, and what a merge of the
    adapter would be, vLLM may not know."""
    try:
        how = quantization_of(base.path)
    except (OSError, ValueError):
        return  # what reads the file next says why
    if how is not None:
        raise InvalidRequest(
            f"{base.name} is quantized already ({how}), and such weights are not trained on: use its 16-bit version, "
            "with tuning.type qlora where memory is scarce, and quantize the result with POST /v1/exports.",
            param="model",
            code="unsupported_base",
        )


def shape_of_base(base: BaseInfo) -> ModelShape:
    """Raises InvalidRequest where the base's files do not say enough."""
    try:
        return read_shape(base.path)
    except (OSError, ValueError, BadTensors, UnknownShape) as error:
        raise InvalidRequest(f"{base.name} cannot be planned with: {error}.", param="model") from error


def warnings_of(base: BaseInfo, resolved: Resolved, rows: int, device: str) -> tuple[tuple[str, str], ...]:
    """The warnings of a plan, as far as they are known before the file is tokenized: (code, text). There are none where
    the base's files do not say enough for a plan."""
    try:
        shape = shape_of_base(base)
    except InvalidRequest:
        return ()
    run = run_of(resolved, data_shape(rows, [(1, 1)]), device)
    found = warnings(
        resolved,
        shape,
        rows=rows,
        examples=rows,
        cut=0,
        trained=trained_parameters(shape, run),
        device=device,
        has_flash_attention=_has_flash_attention(),
    )
    return tuple(found)


def _has_flash_attention() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
