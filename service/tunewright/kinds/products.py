"""Makes rows of `models` for the products of jobs, and stores the products as artifacts, or as files."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tunewright.atomic import sync_folder
from tunewright.config import ParityOptions
from tunewright.registry.adapter_check import WEIGHTS_FILE, check_numbers
from tunewright.registry.artifacts import ArtifactStore
from tunewright.registry.content import adapter_config
from tunewright.registry.mergeable import merge_only
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Lineage
from tunewright.store.states import Desired, ModelKind, ModelState
from tunewright.store.store import Store

_LONGEST_NAME = 255
_ENDINGS = (".gz", ".jsonl", ".json", ".csv", ".parquet")


def state_of_new_adapter(parity: ParityOptions) -> ModelState:
    """New adapters wait for the parity check where it is on."""
    return ModelState.CHECKING if parity.is_on else ModelState.READY


def lineage_of_files(store: Store, training_file: str | None, validation_file: str | None) -> Lineage:
    """The files of a model's lineage, with the hashes of those that still exist."""
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
    artifacts: ArtifactStore, kept: ExitStack, source: Path, name: str, common: dict[str, Any]
) -> dict[str, Any]:
    """Store the folder of a full model as an artifact, and make its row; `kept` protects the artifact until the row is
    written."""
    sha256 = artifacts.put(source, kept)
    return {
        **common, "name": name, "kind": ModelKind.FULL, "sha256": sha256, "bytes": artifacts.stat(sha256).bytes,
        "desired": Desired.UNLOADED, "checkpoint_step": None, "rank": None, "alpha": None, "target_modules": None,
    }  # fmt: skip


def adapter_row(
    artifacts: ArtifactStore,
    kept: ExitStack,
    source: Path,
    name: str,
    step: int | None,
    common: dict[str, Any],
) -> dict[str, Any]:
    """Store a PEFT folder as an artifact, and make its row; `kept` protects the artifact until the row is written.
    Raises InvalidAdapter where a weight is NaN or infinite."""
    check_numbers(source / WEIGHTS_FILE)
    sha256 = artifacts.put(source, kept)
    config = adapter_config(source)
    modules = config["target_modules"]
    if merge_only(config):
        common = {**common, "state": ModelState.MERGE_ONLY}
    is_wanted = step is None and not merge_only(config)
    return {
        **common,
        "name": name,
        "kind": ModelKind.ADAPTER,
        "sha256": sha256,
        "bytes": artifacts.stat(sha256).bytes,
        "desired": Desired.LOADED if is_wanted else Desired.UNLOADED,
        "checkpoint_step": step,
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "target_modules": sorted(modules) if isinstance(modules, list) else [modules],
    }


def place_file(workspace: Workspace, made: Path, id: str) -> None:
    """Give the file that a job has made a second name among the files. The job folder keeps its own until the job has
    ended: after a crash in between, this is repeated. Raises ArtifactsUnavailable."""
    if workspace.remote_files is not None:
        workspace.remote_files.upload(made, id)
    with suppress(FileExistsError):
        os.link(made, workspace.file(id))
    sync_folder(workspace.files)


def name_of_made_file(filename: str, what: str) -> str:
    """The name of a file that is made of another one: with `cleaned`, `train.csv.gz` becomes `train-cleaned.jsonl`."""
    stem = filename
    for ending in _ENDINGS:
        if len(stem) > len(ending):
            stem = stem.removesuffix(ending)
    end = f"-{what}.jsonl"
    return stem[: _LONGEST_NAME - len(end)] + end
