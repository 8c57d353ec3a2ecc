"""Files of prompts whose answers are graded, and trainers of the method reinforcement without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from preferences import COLOURS, THINGS, write
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.rows.cache import file_sha256
from tunewright.trainer.data import tokenized_files
from tunewright.trainer.loop import MetricsCallback
from tunewright.trainer.methods.grpo import GradedTrainer, make_trainer
from tunewright.trainer.model import load_model, load_tokenizer
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Parts

SEED = 5
NEAR = {
    "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
GRADER = {
    "type": "multi",
    "name": "both",
    "graders": {
        "near": NEAR,
        "a": {"type": "regex", "name": "a", "pattern": "[aA]"},
    },
    "calculate_output": "near + 0.5 * a",
}


def prompts(number: int, start: int = 0) -> list[dict[str, Any]]:
    """OpenAI's form: what is asked, and the item's fields."""
    rows = []
    for n in range(start, start + number):
        thing = f"{COLOURS[n % len(COLOURS)]} {THINGS[n % len(THINGS)]}"
        messages = [{"role": "user", "content": f"Say something about the {thing} with number {n}?"}]
        rows.append({"messages": messages, "answer": f"It is a {thing}.", "n": n})
    return rows


def graded_folder(
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
    options = {
        "type": "lora", "rank": 8, "n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "num_generations": 4,
        "max_completion_length": 8, "temperature": 2.0, **tuning,
    }  # fmt: skip
    values: dict[str, Any] = {
        "job_id": "ftjob-graded",
        "base_name": "tiny",
        "base_path": str(embedded_base_path()),
        "training_file": str(training),
        "validation_file": str(validation) if validation else None,
        "training_sha256": file_sha256(training),
        "validation_sha256": file_sha256(validation) if validation else None,
        "seed": SEED,
        "device": "cpu",
        "method": "reinforcement",
        "grader": GRADER,
        "tuning": resolve(
            tuning=TuningOptions(**options),
            hyperparameters=HyperparameterOptions(**(hyperparameters or {})),
            rows=len(rows),
            context=1024,
            max_rank=64,
            device="cpu",
            method="reinforcement",
        ),
        **(spec or {}),
    }
    folder.write_spec(TrainingSpec(**values))
    return folder


def graded_trainer(folder: JobFolder) -> GradedTrainer:
    """The trainer as `trainer.training.train` makes it."""
    spec = folder.read_spec(TrainingSpec)
    transformers.set_seed(spec.seed)
    tokenizer = load_tokenizer(spec)
    training, held_out = tokenized_files(folder, spec, tokenizer, folder.beat)
    metrics = MetricsCallback(EventLog(folder, 0))
    return make_trainer(
        Parts(
            folder,
            spec,
            tokenizer,
            load_model(spec, folder.initial),
            training,
            held_out,
            [metrics],
            folder.beat,
        )
    )
