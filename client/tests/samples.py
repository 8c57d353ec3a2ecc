"""Wire objects for the tests."""

from __future__ import annotations

import json
from typing import Any

JOB_PATH = "/v1/fine_tuning/jobs/ftjob-1"


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
