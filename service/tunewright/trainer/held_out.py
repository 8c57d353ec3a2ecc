"""Exact evaluation on held-out rows, for the trainers of all methods.

The Trainer's own evaluation averages batch means, so rows in a short last batch would count for more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerControl

from tunewright.trainer.speed import uncompiled


def summed(
    trainer: Trainer, measure: Callable[[PreTrainedModel, dict[str, Any]], Mapping[str, float]]
) -> dict[str, float]:
    """The sums of what `measure` returns for each batch of the evaluation set, whose model is in evaluation mode."""
    model = trainer._wrap_model(trainer.model, training=False)
    was_training = model.training
    model.eval()
    sums = defaultdict[str, float](float)
    with torch.no_grad(), uncompiled():
        for batch in trainer.get_eval_dataloader():
            trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
            inputs = trainer._prepare_inputs(batch)
            # Training wraps the model in autocast; the evaluation before it computes in the same types.
            with trainer.accelerator.autocast():
                for name, value in measure(model, inputs).items():
                    sums[name] += value
    model.train(was_training)
    return sums


def tell(trainer: Trainer, metrics: dict[str, float]) -> dict[str, float]:
    """Log the metrics of an evaluation, whose names begin with `eval_`, and tell the callbacks."""
    trainer.log(metrics)
    control: TrainerControl = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics
    )
    trainer.control = control
    return metrics
