"""Rows of `models` for the products of jobs, whose folders are published on the way."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tunewright.config import Settings
from tunewright.registry.adapter_check import CONFIG_FILE, WEIGHTS_FILE, check_numbers
from tunewright.registry.data_folder import (
    DataFolder,
    adapter_config,
    adapter_sha256,
    folder_size,
    model_sha256,
)
from tunewright.registry.mergeable import merge_only
from tunewright.store.records import Lineage
from tunewright.store.states import ModelState
from tunewright.store.store import Store


def state_of_new_adapter(settings: Settings) -> ModelState:
    """Adapters wait for the parity gate where it is on."""
    return ModelState.CHECKING if settings.parity == "on" else ModelState.READY


def lineage_of_files(store: Store, training_file: str | None, validation_file: str | None) -> Lineage:
    """The files of a model's lineage, with their hashes as far as they are still there."""
    training, validation = (
        store.files.get(id) if id is not None else None for id in (training_file, validation_file)
    )
    return Lineage(
        training_file=training_file,
        training_sha256=training.sha256 if training else None,
        validation_file=validation_file,
        validation_sha256=validation.sha256 if validation else None,
    )


def model_row(
    data: DataFolder, kept: ExitStack, source: Path, name: str, common: dict[str, Any]
) -> dict[str, Any]:
    """Publish the folder of a whole model; `kept` holds it until its row is written."""
    sha256 = model_sha256(source)
    kept.enter_context(data.keeping(sha256))
    path = data.publish(source, sha256)
    return {
        **common, "name": name, "kind": "full", "sha256": sha256, "bytes": folder_size(path), "desired": "unloaded",
        "checkpoint_step": None, "rank": None, "alpha": None, "target_modules": None,
    }  # fmt: skip


def adapter_row(
    data: DataFolder, kept: ExitStack, source: Path, name: str, step: int | None, common: dict[str, Any]
) -> dict[str, Any]:
    """Publish a PEFT folder; `kept` holds it until its row is written. Raises InvalidAdapter where a number is NaN or
    infinite."""
    with tempfile.TemporaryDirectory(prefix="adapter-", dir=data.tmp) as temporary:
        only = Path(temporary)
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (only / file).hardlink_to(source / file)
        check_numbers(only / WEIGHTS_FILE)
        sha256 = adapter_sha256(only)
        kept.enter_context(data.keeping(sha256))
        path = data.publish(only, sha256)
    config = adapter_config(path)
    modules = config["target_modules"]
    if merge_only(config):
        common = {**common, "state": ModelState.MERGE_ONLY}
    is_wanted = step is None and not merge_only(config)
    return {
        **common,
        "name": name,
        "kind": "adapter",
        "sha256": sha256,
        "bytes": folder_size(path),
        "desired": "loaded" if is_wanted else "unloaded",
        "checkpoint_step": step,
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "target_modules": sorted(modules) if isinstance(modules, list) else [modules],
    }
