"""The least that rows of the store need."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tunewright.store.records import EngineInfo

POSTGRES = os.environ.get("TUNEWRIGHT_TEST_POSTGRES")
BACKENDS = ["sqlite", "postgresql"] if POSTGRES else ["sqlite"]

JOB: dict[str, Any] = {
    "model": "tiny", "base": "tiny", "training_file": "file-1", "seed": 1, "method": {}, "tuning": {},
    "fingerprint": "f",
}  # fmt: skip
FILE: dict[str, Any] = {
    "id": JOB["training_file"], "filename": "train.jsonl", "purpose": "fine-tune", "size": 1, "sha256": "0" * 64,
    "created_at": 1.0,
}  # fmt: skip
"""What `JOB` trains on: there is no job without its file."""
PRODUCT: dict[str, Any] = {
    "name": "ft:tiny::1", "kind": "adapter", "sha256": "a" * 64, "base": "tiny", "base_fingerprint": "b" * 64,
    "checkpoint_step": None, "method": "lora", "rank": 8, "alpha": 16.0, "target_modules": ["q_proj"],
    "chat_template": None, "bytes": 10, "desired": "loaded",
}  # fmt: skip
Publish = Callable[..., bool]
"""The fixture `publish_model`: rows that change `PRODUCT`, and the job they are of."""


def engine_info(**changes: Any) -> EngineInfo:
    """Of an engine on the base of `PRODUCT`."""
    least = {"device": "cpu", "internal_name": "base-1", "fingerprint": PRODUCT["base_fingerprint"]}
    return EngineInfo(**{**least, **changes})
