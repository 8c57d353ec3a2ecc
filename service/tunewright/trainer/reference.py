"""What a model is compared with while it is trained: itself without its adapter, a frozen copy of the adapter that it
goes on from, or, where it is trained as a whole, the log-probabilities that it gave to answers before.

These are kept in the job folder: every start of the job compares with the same numbers, and a start that is interrupted
while they are computed leaves those that it has for the next one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from transformers import Trainer

from tunewright.atomic import publish_folder, sync_folder
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import rank
from tunewright.trainer import ranks

Numbers = npt.NDArray[np.float32]
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
_ADAPTER = "ref"
"""TRL's name for the frozen copy."""
_FILE = "logps.npy"
_NUMBERS = 2
"""Of each row."""


class BesideReference(Trainer):  # type: ignore[misc]
    """A part of trainers with a reference: what TRL makes a second adapter for."""

    def drop_copy_of_base(self, model: PeftModel) -> None:
        """Delete the copy of a new adapter: it computes what the base does, in more time. TRL then switches the adapter
        off."""
        model.delete_adapter(_ADAPTER)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Without the reference: the checkpoint is an adapter to use, and the parent is there when it is resumed."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / _ADAPTER, ignore_errors=True)


def reference_logps(
    folder: JobFolder,
    keys: Sequence[str],
    rows: int,
    batches: Callable[[int], Batches],
    names: tuple[str, str] = ("ref_chosen_logps", "ref_rejected_logps"),
    at_a_time: int = 1,
) -> dict[str, Numbers]:
    """Two numbers with these names for each of the rows, whose files have these keys in the cache of tokens. `batches`
    computes both from a row on, which is a multiple of `at_a_time`; it is called where they are not kept yet. Of
    several ranks each has a part of them computed, and the first keeps all."""
    kept = folder.reference / hashlib.sha256("\0".join(keys).encode()).hexdigest()
    (is_kept,) = ranks.said_by_first(kept.is_dir())
    if not is_kept:
        unfinished = kept.with_name(f".{kept.name}.tmp")
        _compute(unfinished, rows, batches, at_a_time)
        if rank() == 0:
            publish_folder(unfinished, kept)
        ranks.wait_for_all()
    numbers = np.load(kept / _FILE)
    return dict(zip(names, numbers, strict=True))


def _compute(folder: Path, rows: int, batches: Callable[[int], Batches], at_a_time: int) -> None:
    path = folder / _FILE
    if rank() == 0 and not path.is_file():
        _write_empty(path, rows)
    ranks.wait_for_all()
    numbers = np.load(
        path, mmap_mode="r+" if rank() == 0 else "c"
    )  # "c": what others write stays in their memory
    missing = np.flatnonzero(np.isnan(numbers).any(axis=0))
    done = int(missing[0]) if len(missing) else rows
    done -= done % at_a_time
    ranks.wait_for_all()  # nothing is written before each has seen where to begin
    for batch in batches(done):
        columns = torch.stack(list(batch)).cpu().float().numpy()
        numbers[:, done : done + columns.shape[1]] = columns
        done += columns.shape[1]
    if rank() == 0:
        numbers.flush()


def _write_empty(path: Path, rows: int) -> None:
    """A file in which no number is known: NaN, also after power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("empty.npy")
    np.save(temporary, np.full((_NUMBERS, rows), np.nan, dtype=np.float32))
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
