"""The log-probabilities that a model which is trained as a whole gives to answers before it is trained.

They are kept in the job folder: every start of the job compares with the same numbers, and a start that is interrupted
while they are computed leaves those that it has for the next one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tunewright.atomic import publish_folder, sync_folder
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import rank
from tunewright.rows.canonical import ANSWERS
from tunewright.trainer import ranks

Numbers = npt.NDArray[np.float32]
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
_FILE = "logps.npy"


def reference_logps(
    folder: JobFolder, keys: Sequence[str], pairs: int, batches: Callable[[int], Batches]
) -> dict[str, Numbers]:
    """`ref_chosen_logps` and `ref_rejected_logps`, a number for each of the pairs, whose files have these keys in the
    cache of tokens. `batches` computes those of the chosen and the rejected answers, from a pair on; it is called where
    they are not kept yet. Of several ranks each has a part of them computed, and the first keeps all."""
    kept = folder.reference / hashlib.sha256("\0".join(keys).encode()).hexdigest()
    (is_kept,) = ranks.said_by_first(kept.is_dir())
    if not is_kept:
        unfinished = kept.with_name(f".{kept.name}.tmp")
        _compute(unfinished, pairs, batches)
        if rank() == 0:
            publish_folder(unfinished, kept)
        ranks.wait_for_all()
    numbers = np.load(kept / _FILE)
    return {f"ref_{name}_logps": numbers[row] for row, name in enumerate(ANSWERS)}


def _compute(folder: Path, pairs: int, batches: Callable[[int], Batches]) -> None:
    path = folder / _FILE
    if rank() == 0 and not path.is_file():
        _write_empty(path, pairs)
    ranks.wait_for_all()
    numbers = np.load(
        path, mmap_mode="r+" if rank() == 0 else "c"
    )  # "c": what others write stays in their memory
    missing = np.flatnonzero(np.isnan(numbers).any(axis=0))
    done = int(missing[0]) if len(missing) else pairs
    ranks.wait_for_all()  # nothing is written before each has seen where to begin
    for batch in batches(done):
        columns = torch.stack(list(batch)).cpu().float().numpy()
        numbers[:, done : done + columns.shape[1]] = columns
        done += columns.shape[1]
    if rank() == 0:
        numbers.flush()


def _write_empty(path: Path, pairs: int) -> None:
    """A file in which no number is known: NaN, also after power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("empty.npy")
    np.save(temporary, np.full((len(ANSWERS), pairs), np.nan, dtype=np.float32))
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
