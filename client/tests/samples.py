"""JSON objects as the server sends them."""

from __future__ import annotations

import json
from typing import Any

JOB_PATH = "/v1/fine_tuning/jobs/ftjob-1"
EXPORT_PATH = "/v1/exports/export-1"
CLEANING_PATH = "/v1/cleanings/clean-1"


def job(status: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "created_at": 1,
        "finished_at": None,
        "model": "base",
        "fine_tuned_model": "ft:base:demo:1" if status == "succeeded" else None,
        "organization_id": "org",
        "status": status,
        "hyperparameters": {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": "auto"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        "tuning": {
            "type": "lora",
            "rank": 16,
            "alpha": 32,
            "target_modules": ["q_proj"],
            "max_length": "auto",
        },
        "progress": {"step": 3, "total_steps": 10, "train_loss": 1.5, "eta_seconds": 70},
        "training_file": "file-1",
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "error": None,
        "seed": 7,
        "suffix": "demo",
        "metadata": {"team": "a"},
        "estimated_finish": None,
        "integrations": [],
        **fields,
    }


def cleaning(status: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "id": "clean-1",
        "object": "cleaning",
        "created_at": 1,
        "started_at": 2,
        "finished_at": None,
        "status": status,
        "file": "file-1",
        "filename": "train.jsonl",
        "steps": [{"type": "html"}, {"type": "duplicates"}],
        "data": None,
        "cleaned_file": "file-2" if status == "succeeded" else None,
        "progress": {"step": 12, "total_steps": 48, "phase": "clean", "eta_seconds": 70},
        "estimated_finish": None,
        "error": None,
        "report": None,
        "metadata": None,
        **fields,
    }


def export(status: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "id": "export-1",
        "object": "export",
        "created_at": 1,
        "started_at": 2,
        "finished_at": None,
        "status": status,
        "model": "ft:base:demo:1",
        "models": [{"model": "ft:base:demo:1", "weight": 1.0}],
        "base": "base",
        "format": "awq",
        "combine": None,
        "exported_model": "ft:base:demo-awq:2" if status == "succeeded" else None,
        "progress": {"step": 12, "total_steps": 48, "phase": "quantize", "eta_seconds": 70},
        "estimated_finish": None,
        "error": None,
        "report": None,
        "notes": [],
        "calibration_file": "file-1",
        "calibration_rows": 128,
        "group_size": 64,
        "validation_file": None,
        "validation_rows": 64,
        "max_kl": 0.2,
        "force": False,
        "seed": 0,
        "suffix": "demo-awq",
        "metadata": None,
        **fields,
    }


def report(kl: float | None = 0.05, **gate: Any) -> dict[str, Any]:
    row = {"loss": 1.5, "kl": 0.0, "top1_agreement": 1.0}
    return {
        "quality": {
            "source": "adapter",
            "models": [{"name": "adapter", **row}, {**row, "name": "awq", "kl": kl, "top1_agreement": 0.9}],
            "rows": 8,
            "tokens": 99,
            "rows_from": "probes",
        },
        "gate": {"max_kl": 0.2, "kl": kl, "passed": True, "forced": False, **gate},
        "bytes": 300,
        "source_bytes": 1000,
        "details": {"quantize": {"seconds": 2.5}},
    }


def event(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"ftevent-{number}",
        "object": "fine_tuning.job.event",
        "created_at": number,
        "level": "info",
        "message": f"event {number}",
        "type": "message",
        "data": None,
        **fields,
    }


def file(number: int) -> dict[str, Any]:
    return {
        "id": f"file-{number}",
        "object": "file",
        "bytes": 3,
        "created_at": 1,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
    }


def page(items: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }


def data_event(value: Any, id: str | None = None) -> bytes:
    named = f"id: {id}\n" if id else ""
    return f"{named}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def chunk(text: str) -> bytes:
    return data_event(
        {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    )


DONE = data_event("[DONE]")
