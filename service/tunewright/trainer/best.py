"""The best checkpoint of a run by a metric of its evaluations, and the end of a run that gets no better.

What is decided follows from the evaluations in the Trainer's own history, which each checkpoint has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from tunewright.jobs.folder import EventLog
from tunewright.plan.stopping import Best, BestCheckpoint, EarlyStopping, best_of
from tunewright.trainer.metrics import held_out


class BestCallback(TrainerCallback):  # type: ignore[misc]
    """Has each checkpoint saved that is the best so far, and ends a run that `tuning.early_stopping` ends. For a run
    without a metric it does neither."""

    def __init__(
        self,
        metric: str | None = None,
        stopping: EarlyStopping | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self._metric = metric
        self._stopping = stopping
        self.found: Best | None = None
        """The best so far."""
        if resume_from is not None:
            self._look(TrainerState.load_from_json(str(resume_from / TRAINER_STATE_NAME)).log_history)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended early."""
        return self.found is not None and self.found.is_over

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if args.eval_strategy == IntervalStrategy.STEPS:
            # What the last steps have changed is judged too.
            control.should_evaluate = control.should_evaluate or state.global_step >= state.max_steps
            # The evaluation is added to this step's event.
            control.should_log = control.should_log or control.should_evaluate
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._look(state.log_history)
        if self.found is not None:
            control.should_save = control.should_save or self.found.step == state.global_step
            control.should_training_stop = control.should_training_stop or self.found.is_over
        return control

    def _look(self, history: Sequence[Mapping[str, Any]]) -> None:
        if self._metric is None:
            return
        # At step 0 nothing is learnt yet.
        found = [
            (int(logs["step"]), held_out(logs)) for logs in history if "eval_loss" in logs and logs["step"]
        ]
        values = [(step, metrics[self._metric]) for step, metrics in found]
        self.found = best_of(values, self._metric, self._stopping)

    def result(self, state: TrainerState) -> BestCheckpoint | None:
        best = self.found
        if best is None:
            return None
        return BestCheckpoint(
            metric=best.metric,
            step=best.step,
            value=best.value,
            last_step=state.global_step,
            stopped_early=best.is_over and state.global_step < state.max_steps,
        )

    def tell(self, events: EventLog, state: TrainerState) -> None:
        """Tell the events why the run has ended, and which checkpoint its product is."""
        best, stopping = self.found, self._stopping
        if best is None:
            return
        data = {"step": best.step, best.metric: best.value}
        value = f"{best.metric} {best.value:.4f} at step {best.step}"
        if best.is_over and stopping is not None and state.global_step < state.max_steps:
            more = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
            events.message(
                f"Stopped early at step {state.global_step} of {state.max_steps}: {best.metric} has not improved{more} "
                f"in {stopping.patience} evaluation{'' if stopping.patience == 1 else 's'}; the best was {value}",
                data={**data, "stopped_at": state.global_step},
            )
        events.message(f"The product is the checkpoint with the best {value}", data=data)
