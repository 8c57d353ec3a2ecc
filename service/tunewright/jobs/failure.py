"""Turns exceptions in a job's process into the job's error."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tunewright.atomic import is_disk_full
from tunewright.errors import InvalidRequest

MEMORY_ADVICE = "Lower batch_size or max_length, or use type qlora."
_FULL_BELOW = 2**20
"""Free bytes under which a disk counts as full: a file that torch did not finish takes up the rest."""


class TrainingFailed(Exception):
    """The job cannot succeed: `code` and the message become the job's error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[TrainingFailed], tuple[str, str]]:
        return TrainingFailed, (self.code, str(self))  # it may come from a process that encodes rows


def explain(
    error: Exception, folder: Path, *, process: str = "trainer", advice: str = MEMORY_ADVICE
) -> TrainingFailed | None:
    """The job's error for an exception; None for an unexpected one, after which the process is started again.

    `advice`: what to do where the memory is too small.
    """
    if isinstance(error, TrainingFailed):
        return error
    if isinstance(error, InvalidRequest):
        return TrainingFailed(error.code or "invalid_value", str(error))
    if _is_out_of_memory(error):
        return TrainingFailed(
            "out_of_memory",
            f"the device ran out of memory: {_first_line(error)} {advice}",
        )
    causes = list(_causes(error))
    if any(is_disk_full(cause) or _reports_disk_full(cause, folder) for cause in causes):
        return TrainingFailed(
            "disk_full",
            f"the disk is full: the {process} could not write to {folder} ({_first_line(error)}). Free some space "
            "there, and create the job again.",
        )
    if any(isinstance(cause, OSError) for cause in causes):
        return TrainingFailed("io_error", f"the {process} could not read or write: {error}")
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch has an exception class for a GPU, and only a message for the CPU. torch is not
    imported for this."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def _reports_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether the message means a full disk. safetensors and torch do not raise OSError: safetensors quotes one, and
    torch says that less was written than expected."""
    text = str(error)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return True
    return "inline_container.cc" in text and shutil.disk_usage(folder).free < _FULL_BELOW


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
