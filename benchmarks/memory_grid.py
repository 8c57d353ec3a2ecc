"""Holds the plan's memory to measurement: predictions are written first, then each cell is trained and measured.

    python -m benchmarks.memory_grid /data/grid                       # on a GPU: 72 cells, the corners first
    python -m benchmarks.memory_grid /data/grid --corners             # the corners alone
    python -m benchmarks.memory_grid /tmp/grid --tiny --device cpu    # a dry run on the CPU, with a tiny shape

full, LoRA and QLoRA x batch 1, 4 x length 512, 2048, 8192 x checkpointing on, off x the shapes of `random_base`.
Each cell is a process of its own, which trains with the trainer's code on rows of random tokens: on a GPU the peak is
`torch.cuda.max_memory_allocated`, on the CPU the largest resident memory of the process. Cells that are predicted not
to fit are not run. `predictions.json` is never written over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.random_base import SHAPES

TYPES, BATCHES, LENGTHS = ("full", "lora", "qlora"), (1, 4), (512, 2048, 8192)
TINY = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
STEPS = 3
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape, and lengths of 64 and 256")
    parser.add_argument(
        "--corners", action="store_true", help="the least and the largest batch and length alone"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.folder, json.loads(options.cell))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    predictions = options.folder / "predictions.json"
    if not predictions.exists():
        predictions.write_text(json.dumps(predict(options), indent=1))
    run_cells(options.folder, json.loads(predictions.read_text()))


def cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    shapes, lengths = (["tiny"], (64, 256)) if options.tiny else (list(SHAPES), LENGTHS)
    found = [
        {"shape": shape, "type": type, "batch": batch, "length": length, "checkpointing": checkpointing}
        for shape, type, batch, length, checkpointing in itertools.product(
            shapes, TYPES, BATCHES, lengths, (True, False)
        )
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

    return Qwen2Config(**(TINY if shape == "tiny" else SHAPES[shape]))


def shape_in_memory(name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.plan.shape import shape_of

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    tensors = {one: ("BF16", tuple(p.shape)) for one, p in model.named_parameters()}
    return shape_of(model.config.to_dict(), tensors)


def run_cells(folder: Path, predicted: list[dict[str, Any]]) -> None:
    errors = []
    print("shape\ttype\tbatch\tlength\tcheckpointing\tpredicted GiB\tmeasured GiB\terror\tpeak", flush=True)
    for cell in predicted:
        name = f"{cell['shape']}\t{cell['type']}\t{cell['batch']}\t{cell['length']}\t{cell['checkpointing']}"
        if cell["needs"] > available(cell["device"]):
            print(f"{name}\t{cell['predicted'] / 2**30:.2f}\tdoes not fit", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.memory_grid", str(folder), "--cell", json.dumps(cell)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
            print(f"{name}\t{cell['predicted'] / 2**30:.2f}\tfailed: {last}", flush=True)
            continue
        measured = json.loads(ended.stdout.splitlines()[-1])["measured"]
        with (folder / "measured.jsonl").open("a") as file:
            file.write(json.dumps({**cell, "measured": measured}) + "\n")
        error = cell["predicted"] / measured - 1
        errors.append(abs(error))
        print(
            f"{name}\t{cell['predicted'] / 2**30:.2f}\t{measured / 2**30:.2f}\t{error:+.1%}\t{cell['peak']}",
            flush=True,
        )
    if errors:
        print(f"{len(errors)} cells: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def available(device: str) -> int:
    if device == "cuda":
        from tunewright.engine.gpus import gpu_memory

        return gpu_memory("0")[1]
    import psutil

    return int(psutil.virtual_memory().available)


def measure(folder: Path, cell: dict[str, Any]) -> dict[str, int]:
    """Train a few steps, one batch each, and return the peak in bytes."""
    import resource

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tunewright.config import embedded_base_path
    from tunewright.jobs.folder import JobFolder
    from tunewright.plan.defaults import resolve
    from tunewright.plan.options import HyperparameterOptions, TuningOptions
    from tunewright.trainer.methods.supervised import _arguments
    from tunewright.trainer.model import load_model
    from tunewright.trainer.spec import TrainingSpec

    base = folder / cell["shape"]
    if not (base / "config.json").exists():
        with torch.device(cell["device"]):
            AutoModelForCausalLM.from_config(config_of(cell["shape"]), dtype=torch.bfloat16).save_pretrained(
                base
            )
        if cell["device"] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    options = {key: cell[key] for key in ("type",)} | {
        "rank": RANK,
        "batch_size": cell["batch"],
        "per_device_batch_size": cell["batch"],
        "max_length": cell["length"],
        "gradient_checkpointing": cell["checkpointing"],
        "n_epochs": 1,
    }
    if cell["type"] == "full":
        del options["rank"]
    tuning = resolve(
        tuning=TuningOptions(**options),
        hyperparameters=HyperparameterOptions(),
        rows=STEPS * cell["batch"],
        context=cell["length"],
        max_rank=RANK,
        device=cell["device"],
    )
    spec = TrainingSpec(
        job_id="grid", base_name=cell["shape"], base_path=str(base), training_file="", seed=0,
        device=cell["device"], tuning=tuning,
    )  # fmt: skip
    words = torch.randint(4, 2000, (STEPS * cell["batch"], cell["length"])).tolist()
    if cell["batch"] > 1:  # rows of unequal length, which need a mask, as in a job
        words[:: cell["batch"]] = [row[:-1] for row in words[:: cell["batch"]]]
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    trainer = SFTTrainer(
        model=load_model(spec),
        args=_arguments(spec, JobFolder(folder / "job"), len(words), evaluates=False),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in words]),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        processing_class=tokenizer,
    )
    trainer.train()
    if cell["device"] == "cuda":
        return {"measured": int(torch.cuda.max_memory_allocated())}
    return {"measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    main()
