"""Preference files, and trainers of the method dpo without a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tunewright.config import embedded_base_path
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.rows.cache import file_sha256
from tunewright.trainer.data import tokenized_files
from tunewright.trainer.loop import MetricsCallback
from tunewright.trainer.methods.dpo import PreferenceTrainer
from tunewright.trainer.model import load_model, load_tokenizer
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Parts

SEED = 5
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink")
THINGS = ("door", "car", "cat", "hat", "box", "cup")


def text_rows(number: int, start: int = 0) -> list[dict[str, str]]:
    """TRL's form: the polite answer is the better one."""
    rows = []
    for n in range(start, start + number):
        thing = f"{COLOURS[n % len(COLOURS)]} {THINGS[n % len(THINGS)]}"
        rows.append(
            {
                "prompt": f"Is number {n} a {thing}?\n",
                "chosen": f"Yes please, {n} is a {thing}.",
                "rejected": "No." if n % 3 else f"No, go away with your {thing}.",
            }
        )
    return rows


def as_messages(row: dict[str, str]) -> dict[str, Any]:
    """TRL's form with messages."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name].strip()}] for name, role in roles.items()}


def as_openai(row: dict[str, str]) -> dict[str, Any]:
    made = as_messages(row)
    return {
        "input": {"messages": made["prompt"]},
        "preferred_output": made["chosen"],
        "non_preferred_output": made["rejected"],
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job_folder(
    path: Path,
    rows: list[Any],
    held_out: list[Any] | None = None,
    *,
    hyperparameters: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    **tuning: Any,
) -> JobFolder:
    """The folder of a job on the embedded base; `spec` and `tuning` are changes."""
    folder = JobFolder(path)
    training = write(path.parent / "rows.jsonl", rows)
    validation = write(path.parent / "held-out.jsonl", held_out) if held_out else None
    options = {"type": "lora", "n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, **tuning}
    folder.write_spec(
        TrainingSpec(
            **{
                "job_id": "ftjob-dpo",
                "base_name": "tiny",
                "base_path": str(embedded_base_path()),
                "training_file": str(training),
                "validation_file": str(validation) if validation else None,
                "training_sha256": file_sha256(training),
                "validation_sha256": file_sha256(validation) if validation else None,
                "seed": SEED,
                "device": "cpu",
                "method": "dpo",
                "tuning": resolve(
                    tuning=TuningOptions(**options),
                    hyperparameters=HyperparameterOptions(**(hyperparameters or {})),
                    rows=len(rows),
                    context=1024,
                    max_rank=64,
                    device="cpu",
                    method="dpo",
                ),
                **(spec or {}),
            }
        )
    )
    return folder


def trainer_of(folder: JobFolder) -> PreferenceTrainer:
    """The trainer as `trainer.training.train` makes it."""
    spec = folder.read_spec(TrainingSpec)
    transformers.set_seed(spec.seed)
    tokenizer = load_tokenizer(spec)
    training, held_out = tokenized_files(folder, spec, tokenizer, folder.beat)
    metrics = MetricsCallback(EventLog(folder, 0))
    return PreferenceTrainer(
        Parts(folder, spec, tokenizer, load_model(spec), training, held_out, [metrics], folder.beat)
    )
