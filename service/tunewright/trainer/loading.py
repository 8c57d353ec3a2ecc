"""A part of the trainers of all methods: how they get their rows, in the order of a mixture, how long steps wait for
them, which is told where it is much, and the optimizer of LoRA+."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, TrainerCallback

from tunewright.jobs.folder import EventLog
from tunewright.jobs.process import end_with
from tunewright.plan.pitfalls import loader_blocks
from tunewright.trainer.checkpoints import PortableCheckpoints

_STEPS = 20
"""Steps after which it is judged. The first one is left out: the processes that read rows start in it."""


class OrderedRows(PortableCheckpoints):
    """A part of trainers of every method: the order of their examples, how long steps wait for these, and LoRA+."""

    order: Sampler[int] | None = None
    """None: the Trainer's own, each example once in an epoch, by chance."""
    on_wait: Callable[[float], None] | None = None
    """Called with the seconds in which a step has waited for its rows."""
    reference_seconds: float | None = None
    """Of the reference's pass over the training rows, where this process had to do it before the first step."""

    optimizer: torch.optim.Optimizer | None
    loraplus_lr_ratio: float | None = None
    """The learning rate of lora_B as a multiple of that of lora_A; None: the same."""

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model,
                kind,
                loraplus_lr_ratio=self.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **options,
            )
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        return self.order if self.order is not None else super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's, whose processes end with this one, also where it is killed."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self.order is not None:
            # Of several ranks each has a part of another sampler's batches, and where the first of them are skipped,
            # accelerate tells the number of the epoch to the outer one alone.
            loader.set_sampler(self.order)
        readers = getattr(loader, "base_dataloader", loader)  # accelerate's loader iterates over another one
        readers.worker_init_fn = partial(_begin, os.getpid(), readers.worker_init_fn)
        return loader

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        found = super().get_batch_samples(*arguments, **options)
        if self.on_wait is not None:
            self.on_wait(time.monotonic() - began)
        return found


def _begin(parent: int, then: Callable[[int], None] | None, worker: int) -> None:
    """The first thing in a process that reads rows."""
    end_with(parent)
    if then is not None:
        then(worker)


class LoadingCallback(TrainerCallback):  # type: ignore[misc]
    """Has the seconds of steps, and of waits for their rows, which the trainer tells (`OrderedRows.on_wait`)."""

    def __init__(self, events: EventLog, workers: int) -> None:
        self._events = events
        self._workers = workers
        self._began = time.monotonic()
        self._steps = 0
        self._step_seconds = 0.0
        self.waited = 0.0
        """Seconds that the steps of this process have waited for their rows, all but the first."""

    def wait(self, seconds: float) -> None:
        if self._steps:
            self.waited += seconds

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._steps:
            self._step_seconds += time.monotonic() - self._began
        self._steps += 1
        if self._steps == _STEPS + 1:
            seconds = self._step_seconds + self.waited
            if blocks := loader_blocks(self.waited, seconds, self._workers):
                self._events.message(blocks, level="warn", data={"code": "loader_blocks"})
