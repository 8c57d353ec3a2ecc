"""A trainer that cannot succeed ends with the reason in its result, and says what to do.

No service: the trainer is run by hand on a job folder, which is all it knows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disks import fill_up, free, small_disk
from forked import Process
from tunewright.jobs.failure import explain
from tunewright.jobs.folder import DISK_FULL, JobFolder
from tunewright.trainer.spec import TrainingResult, TrainingSpec

from .conftest import wait_until
from .test_resume import job_folder

FULL = {
    "type": "full", "rank": None, "alpha": None, "dropout": None, "target_modules": None, "use_rslora": False,
}  # fmt: skip


def folder_with(path: Path, **tuning: Any) -> JobFolder:
    folder = job_folder(path)
    spec = folder.read_spec(TrainingSpec)
    changes = {"tuning": spec.tuning.model_copy(update=tuning), "validation_file": None}
    folder.write_spec(spec.model_copy(update=changes))
    return folder


def train(
    folder: JobFolder, preexec: Callable[[], None] | None = None
) -> tuple[int | None, TrainingResult | None]:
    """(exit code, result)"""
    code: int | None
    if preexec is None:
        code = Process("tunewright.trainer", str(folder.path), log=folder.log_file).wait(240)
    else:
        command = [sys.executable, "-m", "tunewright.trainer", str(folder.path)]
        with folder.log_file.open("ab") as log:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=240, preexec_fn=preexec).returncode
    return code, folder.read_result(TrainingResult)


def failed(folder: JobFolder, preexec: Callable[[], None] | None = None) -> tuple[str | None, str]:
    """(code, message)"""
    exit_code, result = train(folder, preexec)
    assert exit_code == 0, folder.log_file.read_text()[-2000:]
    assert result is not None
    assert result.status == "failed"
    return result.error_code, result.error_message or ""


@pytest.mark.soak
def test_an_absurd_learning_rate_ends_as_a_loss_that_is_no_number(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "job", learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0.0)
    code, message = failed(folder)
    assert code == "loss_not_finite"
    assert message.startswith("the loss became nan at step ")
    assert "lower the learning rate, or look for broken rows in the data" in message
    steps = [e["data"]["step"] for e in folder.read_events(0)[0] if e["type"] == "metrics"]
    assert steps, "the steps before are reported"


def test_memory_that_does_not_suffice_is_told_as_that(tmp_path: Path) -> None:
    """256 rows of a whole context at once, in a process that may have 4 GiB."""
    folder = folder_with(tmp_path / "job", batch_size=256, per_device_batch_size=256, max_length=1024, **FULL)
    row = json.dumps({"prompt": "a", "completion": " word" * 1100}) + "\n"
    Path(folder.read_spec(TrainingSpec).training_file).write_text(row * 256)
    code, message = failed(folder, lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)))
    assert code == "out_of_memory", message
    assert message.startswith("the device ran out of memory: ")
    assert message.endswith("Lower batch_size or max_length, or use type qlora.")


def test_a_row_that_is_too_long_is_refused_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "job", max_length=30, truncation="refuse")
    code, message = failed(folder)
    assert code == "row_too_long"
    assert message.startswith("training_file: line ")
    assert "; the maximum is 30. " in message


@pytest.mark.parametrize("megabytes", [12, 30], ids=["weights", "optimizer"])
def test_a_checkpoint_that_does_not_fit_ends_as_a_full_disk(tmp_path: Path, megabytes: int) -> None:
    """17 MiB of weights and 34 of the optimizer: safetensors and torch raise different errors on a full disk."""
    with small_disk(tmp_path / "disk", megabytes) as disk:
        folder = folder_with(disk / "job", **FULL)
        code, message = failed(folder)
        assert code == "disk_full"
        assert message.startswith(f"the disk is full: the trainer could not write to {folder.path} (")
        assert message.endswith("Free some space there, and create the job again.")
        assert free(disk) > (megabytes - 1) * 2**20, "what was half written is gone"


def test_without_room_for_the_result_the_exit_code_tells(tmp_path: Path) -> None:
    """Without a checkpoint or tokens in the folder, whose removal would make room for a result: the first checkpoint
    comes after 24 steps, and the tokens are elsewhere."""
    with small_disk(tmp_path / "disk", 8) as disk:
        folder = folder_with(
            disk / "job", batch_size=2, per_device_batch_size=2, gradient_accumulation_steps=1
        )
        spec = folder.read_spec(TrainingSpec)
        folder.write_spec(spec.model_copy(update={"token_cache": str(tmp_path / "tokens")}))
        process = Process("tunewright.trainer", str(folder.path), log=folder.log_file)
        try:
            wait_until(lambda: folder.events_size() > 300, 120, "it trains")
            ballast = fill_up(disk)
            assert process.wait(120) == DISK_FULL
        finally:
            process.kill()
            process.wait()
        assert folder.read_result(TrainingResult) is None
        assert not folder.checkpoints.exists()
        ballast.unlink()
        assert all(event["type"] for event in folder.read_events(0)[0]), "each event is whole"


class Cause(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out_of_memory",
        ),
        (OSError(28, "No space left on device"), "disk_full"),
        (OSError(122, "Disk quota exceeded"), "disk_full"),
        (PermissionError(13, "Permission denied"), "io_error"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "disk_full",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"), None),
        (ValueError("something else"), None),
    ],
)
def test_what_libraries_raise_is_understood(error: Exception, code: str | None, tmp_path: Path) -> None:
    explained = explain(error, tmp_path)
    assert (explained.code if explained else None) == code
    try:
        try:
            raise error
        except Exception as cause:
            raise Cause("on top") from cause
    except Cause as outer:
        if code != "out_of_memory":
            explained = explain(outer, tmp_path)
            assert (explained.code if explained else None) == code
