"""When a trainer saves: at epochs' ends after their evaluation, between them now and then, and when asked to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.trainer.loop import CheckpointCallback, MetricsCallback, latest_checkpoint

ARGS = TrainingArguments(output_dir="unused", report_to="none")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def checkpointer(folder: JobFolder, interval: float) -> CheckpointCallback:
    return CheckpointCallback(folder, MetricsCallback(EventLog(folder)), interval)


def state(step: int, *, logging_steps: int = 1) -> TrainerState:
    """Four steps an epoch, two epochs."""
    return TrainerState(epoch=step / 4, global_step=step, max_steps=8, logging_steps=logging_steps)


def step_end(saver: CheckpointCallback, at: TrainerState) -> TrainerControl:
    return saver.on_step_end(ARGS, at, TrainerControl())


def epoch_end(saver: CheckpointCallback, at: TrainerState) -> TrainerControl:
    """As the Trainer asks: its own callback has wished for an evaluation."""
    return saver.on_epoch_end(ARGS, at, TrainerControl(should_evaluate=True))


def test_what_is_due_at_an_epochs_end_waits_for_the_evaluation(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    assert step_end(saver, state(3)).should_save
    assert not step_end(saver, state(4)).should_save, (
        "the held-out loss of step 4 would be reported for no step"
    )
    control = epoch_end(saver, state(4))
    assert (control.should_save, control.should_evaluate, control.should_training_stop) == (True, True, False)


def test_an_evaluation_has_a_step_to_be_told_with(folder: JobFolder) -> None:
    saver = checkpointer(folder, 3600)
    assert [step_end(saver, state(step, logging_steps=3)).should_log for step in (1, 2, 4, 5, 8)] == [
        False, False, True, False, True,
    ]  # fmt: skip


def test_between_epochs_it_saves_where_a_mean_loss_ends(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    assert [step_end(saver, state(step, logging_steps=3)).should_save for step in (1, 2, 3, 5, 6, 7)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


def test_nothing_is_saved_before_it_is_due(folder: JobFolder) -> None:
    saver = checkpointer(folder, 3600)
    assert not step_end(saver, state(3)).should_save
    assert epoch_end(saver, state(4)).should_save


def test_asked_to_stop_within_an_epoch(folder: JobFolder) -> None:
    saver = checkpointer(folder, 3600)
    saver.ask_to_stop()
    control = step_end(saver, state(2, logging_steps=3))
    assert control.should_save
    assert control.should_log
    assert control.should_training_stop
    assert saver.stopped
    left = epoch_end(saver, state(2))
    assert not left.should_evaluate, "whoever stops it waits"
    assert not left.should_save


def test_asked_to_stop_in_an_epochs_last_step(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    saver.ask_to_stop()
    control = step_end(saver, state(4))
    assert not control.should_training_stop
    control = epoch_end(saver, state(4))
    assert (control.should_save, control.should_evaluate, control.should_training_stop) == (True, True, True)
    assert saver.stopped


def test_asked_to_stop_in_the_last_step_it_ends(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    saver.ask_to_stop()
    step_end(saver, state(8))
    control = epoch_end(saver, state(8))
    assert (control.should_save, control.should_training_stop) == (True, False)
    assert not saver.stopped


def save(saver: CheckpointCallback, folder: JobFolder, at: TrainerState) -> Path:
    """As the Trainer does; returns the folder that it has written."""
    written = folder.work / f"checkpoint-{at.global_step}"
    written.mkdir(parents=True)
    (written / "weights").write_text(f"those of step {at.global_step}")
    saver.on_save(ARGS, at, TrainerControl())
    return written


def test_a_step_is_saved_once_and_nothing_is_left_of_a_second_save(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    save(saver, folder, state(4))  # the best so far, after an evaluation by steps
    assert not epoch_end(saver, state(4)).should_save
    assert not save(saver, folder, state(4)).exists()
    assert [step for step, _ in folder.complete_checkpoints()] == [4]
    assert epoch_end(saver, state(8)).should_save


def test_a_damaged_checkpoint_is_not_resumed_from_and_is_saved_anew(folder: JobFolder) -> None:
    saver = checkpointer(folder, 0)
    for step in (4, 8):
        save(saver, folder, state(step))
    older, newer = folder.checkpoints / "step-4", folder.checkpoints / "step-8"
    (newer / "weights").write_text("something else")

    assert latest_checkpoint(folder) == older
    again = checkpointer(folder, 0)
    assert list(again.usable()) == [4], "it is not offered for use"
    save(again, folder, state(8))
    assert (newer / "weights").read_text() == "those of step 8"
    assert latest_checkpoint(folder) == newer
    assert sorted(again.usable()) == [4, 8]
