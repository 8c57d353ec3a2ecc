"""Holds the plan's memory to measurement: predictions are written first, then each cell is trained and measured.

    python -m benchmarks.memory_grid /data/grid                       # on a GPU: 108 cells, the corners first
    python -m benchmarks.memory_grid /data/grid --corners             # the corners alone
    python -m benchmarks.memory_grid /tmp/grid --device cpu           # on the CPU: 48 cells of small shapes

full, LoRA and QLoRA x batch 1, 4 x length 512, 2048, 8192 x checkpointing on, off, and off with compiled layers x the
large shapes of `random_base`. On the CPU: x length 256, 1024 x checkpointing on, off x the small shapes.
Each cell is a process of its own, which trains with the trainer's code on rows of random tokens: on a GPU the peak is
`torch.cuda.max_memory_allocated`, on the CPU the largest resident memory of the process (VmHWM), which is a fork of
one that has imported the trainer, as in the service.
Cells that are predicted not to fit are not run. With `--parallel`, cells that fit beside each other run at the same
time: what a process has allocated does not depend on others. `predictions.json` is never written over, and a cell that
is in `measured.jsonl` is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_base import SHAPES, save

TYPES, BATCHES, LENGTHS = ("full", "lora", "qlora"), (1, 4), (512, 2048, 8192)
SMALL = ["tiny", "small"]
LARGE = [shape for shape in SHAPES if shape not in SMALL]
CPU_LENGTHS = (256, 1024)
HOW = (
    {"checkpointing": True, "compiled": False},
    {"checkpointing": False, "compiled": False},
    {"checkpointing": False, "compiled": True},
)
STEPS = 3
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--corners", action="store_true", help="the least and the largest batch and length alone"
    )
    parser.add_argument("--parallel", type=int, default=1, help="most cells that run at the same time")
    parser.add_argument("--shape", choices=SHAPES, help="one shape alone")
    parser.add_argument("--type", choices=TYPES, nargs="+", default=TYPES, help="these methods alone")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.folder, json.loads(options.cell))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    predictions = options.folder / "predictions.json"
    if not predictions.exists():
        predictions.write_text(json.dumps(predict(options), indent=1))
    chosen = [
        cell
        for cell in json.loads(predictions.read_text())
        if cell["type"] in options.type and options.shape in (None, cell["shape"])
    ]
    if options.device == "cpu":
        run_forked(options.folder, chosen)
    else:
        for shape in {cell["shape"] for cell in chosen}:
            make_base(options.folder / shape, shape, options.device)
        run_cells(options.folder, chosen, options.parallel)
    summarize(options.folder)


def cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    on_gpu = options.device == "cuda"
    shapes, lengths, ways = (LARGE, LENGTHS, HOW) if on_gpu else (SMALL, CPU_LENGTHS, HOW[:2])
    found = [
        {"shape": shape, "type": type, "batch": batch, "length": length, **how}
        for shape, type, batch, length, how in itertools.product(shapes, TYPES, BATCHES, lengths, ways)
    ]
    ends = (min(lengths), max(lengths))
    corners = [cell for cell in found if cell["length"] in ends]
    rest = [] if options.corners else [cell for cell in found if cell["length"] not in ends]
    return [{**cell, "device": options.device} for cell in corners + rest]


def predict(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cells, with the bytes that are predicted."""
    from tunewright.plan.memory import CUDA_CONTEXT, Run, estimate

    found, shapes = [], {}
    for cell in cells(options):
        if cell["shape"] not in shapes:
            shapes[cell["shape"]] = shape_in_memory(cell["shape"])
        rest = {key: value for key, value in cell.items() if key != "shape"}
        memory = estimate(shapes[cell["shape"]], Run(**rest, rank=RANK, accumulates=False))
        predicted = memory.allocated if cell["device"] == "cuda" else memory.total
        found.append(
            {**cell, "predicted": predicted, "peak": memory.peak, "needs": memory.total + CUDA_CONTEXT}
        )
    return found


def config_of(shape: str) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**SHAPES[shape])


def shape_in_memory(name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.plan.shape import shape_of

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    tensors = {one: ("BF16", tuple(p.shape)) for one, p in model.named_parameters()}
    return shape_of(model.config.to_dict(), tensors)


def make_base(folder: Path, shape: str, device: str) -> None:
    """Save a model of this shape with random weights, in a process that gives the device's memory back."""
    if (folder / "config.json").exists():
        return
    command = [sys.executable, "-m", "benchmarks.random_base", shape, str(folder), "--device", device]
    subprocess.run(command, check=True)


def run_forked(folder: Path, predicted: list[dict[str, Any]]) -> None:
    """Run the cells on the CPU, one after the other. This process computes nothing: the threads of torch would be
    missing in its forks."""
    imported()
    waiting = to_run(folder, predicted)
    for shape in dict.fromkeys(cell["shape"] for cell in waiting):
        if not (folder / shape / "config.json").exists():
            in_a_fork(save, shape, folder / shape, "cpu")
    for cell in waiting:
        try:
            tell(folder, cell, in_a_fork(measure, folder, cell)["measured"])
        except RuntimeError as error:
            tell(folder, cell, str(error))


def in_a_fork(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns. Raises RuntimeError with its error."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, arguments))
    process.start()
    sending.close()
    try:
        result, error = receiving.recv()
    except EOFError:
        result, error = None, "its process was ended"
    process.join()
    if error:
        raise RuntimeError(error)
    return result


def _send(sending: Any, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        sending.send((work(*arguments), None))
    except Exception as error:
        sending.send((None, f"{type(error).__name__}: {error}"))


def to_run(folder: Path, predicted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells that fit and are not measured yet."""
    print(
        "shape\ttype\tbatch\tlength\tcheckpointing\tcompiled\tpredicted GiB\tmeasured GiB\terror\tpeak",
        flush=True,
    )
    room, known = available(predicted[0]["device"]), {name_of(cell) for cell in measured_cells(folder)}
    waiting = []
    for cell in predicted:
        if cell["needs"] > room:
            print(f"{name_of(cell)}\t{cell['predicted'] / 2**30:.2f}\tdoes not fit", flush=True)
        elif name_of(cell) not in known:
            waiting.append(cell)
    return waiting


def run_cells(folder: Path, predicted: list[dict[str, Any]], parallel: int) -> None:
    """Run the cells in their order, each as soon as there is room for it beside those that run."""
    waiting = to_run(folder, predicted)
    room, running = available("cuda"), list[tuple[dict[str, Any], subprocess.Popen[str], Any]]()
    while waiting or running:
        left = room - sum(cell["needs"] for cell, _, _ in running)
        fitting = next((cell for cell in waiting if cell["needs"] <= left), None)
        if fitting is not None and len(running) < parallel:
            waiting.remove(fitting)
            errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the cell has ended)
            command = [sys.executable, "-m", "benchmarks.memory_grid", str(folder), "--cell"]
            command.append(json.dumps(fitting))
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            running.append((fitting, process, errors))
            continue
        time.sleep(0.2)
        for cell, process, errors in [one for one in running if one[1].poll() is not None]:
            running.remove((cell, process, errors))
            tell(folder, cell, ended(process, errors))


def ended(process: subprocess.Popen[str], errors: Any) -> int | str:
    """What the process of a cell has measured, or its error."""
    output, _ = process.communicate()
    with errors:
        errors.seek(0)
        if process.returncode:
            return str((errors.read().strip().splitlines() or ["no output"])[-1])
    return int(json.loads(output.splitlines()[-1])["measured"])


def tell(folder: Path, cell: dict[str, Any], measured: int | str) -> None:
    """Print the row of a cell that has ended, and store what it measured; an error is not stored."""
    row = f"{name_of(cell)}\t{cell['predicted'] / 2**30:.2f}"
    if isinstance(measured, str):
        print(f"{row}\tfailed: {measured[:300]}", flush=True)
        return
    with (folder / "measured.jsonl").open("a") as file:
        file.write(json.dumps({**cell, "measured": measured}) + "\n")
    error = cell["predicted"] / measured - 1
    print(f"{row}\t{measured / 2**30:.2f}\t{error:+.1%}\t{cell['peak']}", flush=True)


def name_of(cell: dict[str, Any]) -> str:
    return "\t".join(
        str(cell[key]) for key in ("shape", "type", "batch", "length", "checkpointing", "compiled")
    )


def measured_cells(folder: Path) -> list[dict[str, Any]]:
    file = folder / "measured.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def summarize(folder: Path) -> None:
    cells = measured_cells(folder)
    if not cells:
        return
    for type in TYPES:
        errors = [abs(one["predicted"] / one["measured"] - 1) for one in cells if one["type"] == type]
        if errors:
            print(
                f"{type}: {len(errors)} cells: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}"
            )
    errors = [abs(one["predicted"] / one["measured"] - 1) for one in cells]
    print(f"all: {len(errors)} cells: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def available(device: str) -> int:
    if device == "cuda":
        from tunewright.engine.gpus import gpu_memory

        return gpu_memory("0")[1]
    import psutil

    return int(psutil.virtual_memory().available)


def spec_of(base: Path, device: str, rows: int, **tuning: Any) -> Any:
    """The spec of a run of one epoch over rows that the benchmark makes itself, with an adapter of `RANK`."""
    from tunewright.plan.defaults import resolve
    from tunewright.plan.options import HyperparameterOptions, TuningOptions
    from tunewright.trainer.spec import TrainingSpec

    if tuning["type"] != "full":
        tuning["rank"] = RANK
    resolved = resolve(
        tuning=TuningOptions(n_epochs=1, **tuning),
        hyperparameters=HyperparameterOptions(),
        rows=rows,
        context=tuning["max_length"],
        max_rank=RANK,
        device=device,
    )
    return TrainingSpec(
        job_id="benchmark", base_name=base.name, base_path=str(base), training_file="", seed=0, device=device,
        tuning=resolved,
    )  # fmt: skip


def imported() -> None:
    """Import all that a cell needs."""
    import datasets
    import torch
    import trl

    from tunewright.trainer import model, speed, training
    from tunewright.trainer.methods import supervised

    assert all((datasets, torch, trl, model, speed, training, supervised))


def measure(folder: Path, cell: dict[str, Any]) -> dict[str, int]:
    """Train a few steps, one batch each, and return the peak in bytes."""
    import torch
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tunewright.jobs.folder import JobFolder
    from tunewright.trainer.methods.supervised import configured
    from tunewright.trainer.model import load_model, load_tokenizer
    from tunewright.trainer.speed import compile_layers, leave_out_mask
    from tunewright.trainer.training import common_arguments

    spec = spec_of(
        folder / cell["shape"],
        cell["device"],
        STEPS * cell["batch"],
        type=cell["type"],
        batch_size=cell["batch"],
        per_device_batch_size=cell["batch"],
        max_length=cell["length"],
        gradient_checkpointing=cell["checkpointing"],
    )
    words = torch.randint(4, 2000, (STEPS * cell["batch"], cell["length"])).tolist()
    if cell["batch"] > 1:  # rows of unequal length, as in a job
        words[:: cell["batch"]] = [row[:-1] for row in words[:: cell["batch"]]]
    job = JobFolder(Path(tempfile.mkdtemp(dir=folder)))
    model = load_model(spec, job.initial)
    leave_out_mask(model)
    if cell["compiled"]:
        compile_layers(model)
    trainer = SFTTrainer(
        model=model,
        args=configured(common_arguments(spec, job, len(words), evaluates=False)),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in words]),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        processing_class=load_tokenizer(spec),
    )
    trainer.train()
    if cell["device"] == "cuda":
        return {"measured": int(torch.cuda.max_memory_allocated())}
    return {"measured": largest_resident()}


def largest_resident() -> int:
    """Of this process, in bytes. getrusage would also count the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
