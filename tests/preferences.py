"""Files of answers to judge, and trainers of the methods that learn from them, without a service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig

from tunewright.config import embedded_base_path
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.rows.cache import file_sha256
from tunewright.trainer.data import tokenized_files
from tunewright.trainer.loop import MetricsCallback
from tunewright.trainer.model import load_model, load_tokenizer
from tunewright.trainer.run import METHODS
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import Parts

SEED = 5
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>"
    "{% if not loop.last or add_generation_prompt %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Ends with the token at which the engine stops: what a template writes behind it, TRL would learn too."""
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


def labelled_rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    """TRL's form: two of three answers are good, and they are polite."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen"] if n % 3 else row["rejected"],
            "label": bool(n % 3),
        }
        for n, row in enumerate(text_rows(number, start))
    ]


def labelled_messages(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's form with messages."""
    roles = {"prompt": "user", "completion": "assistant"}
    made = {name: [{"role": role, "content": row[name].strip()}] for name, role in roles.items()}
    return {**made, "label": row["label"]}


def labelled_chat(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation with a label."""
    made = labelled_messages(row)
    return {"messages": [*made["prompt"], *made["completion"]], "label": row["label"]}


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
    method: str = "dpo",
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
                "job_id": f"ftjob-{method}",
                "base_name": "tiny",
                "base_path": str(embedded_base_path()),
                "training_file": str(training),
                "validation_file": str(validation) if validation else None,
                "training_sha256": file_sha256(training),
                "validation_sha256": file_sha256(validation) if validation else None,
                "seed": SEED,
                "device": "cpu",
                "method": method,
                "tuning": resolve(
                    tuning=TuningOptions(**options),
                    hyperparameters=HyperparameterOptions(**(hyperparameters or {})),
                    rows=len(rows),
                    context=1024,
                    max_rank=64,
                    device="cpu",
                    method=method,
                ),
                **(spec or {}),
            }
        )
    )
    return folder


def trainer_of(folder: JobFolder) -> Any:
    """The trainer as `trainer.training.train` makes it."""
    spec = folder.read_spec(TrainingSpec)
    transformers.set_seed(spec.seed)
    tokenizer = load_tokenizer(spec)
    training, held_out = tokenized_files(folder, spec, tokenizer, folder.beat)
    metrics = MetricsCallback(EventLog(folder, 0))
    parts = Parts(
        folder, spec, tokenizer, load_model(spec, folder.initial), training, held_out, [metrics], folder.beat
    )
    trainer = METHODS[spec.method](parts)
    trainer.loraplus_lr_ratio = spec.tuning.loraplus_lr_ratio
    return trainer


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def assert_close(ours: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name, one in ours.items():
        torch.testing.assert_close(one, others[name], atol=1e-5, rtol=1e-5)


def plain_parts(
    folder: JobFolder, task: str = "CAUSAL_LM"
) -> tuple[dict[str, Any], transformers.PreTrainedTokenizerBase, LoraConfig | None]:
    """What a person would give any of TRL's trainers, with the values of the job: arguments, tokenizer, adapter."""
    spec = folder.read_spec(TrainingSpec)
    tuning = spec.tuning
    transformers.set_seed(SEED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_base_path())
    if spec.chat_template:
        tokenizer.chat_template = spec.chat_template
    arguments = {
        "output_dir": str(folder.path / "plain"), "use_cpu": True, "bf16": False, "seed": SEED, "data_seed": SEED,
        "num_train_epochs": tuning.n_epochs, "per_device_train_batch_size": tuning.per_device_batch_size,
        "gradient_accumulation_steps": tuning.gradient_accumulation_steps, "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "max_length": tuning.max_length, "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    adapter = LoraConfig(
        task_type=task, r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    return arguments, tokenizer, adapter if tuning.type == "lora" else None
