"""Exact evaluation on held-out rows, for the trainers of all methods.

The Trainer's own evaluation averages batch means, so rows in a short last batch would count for more. Of several ranks
each has a part of the batches, and their sums are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerControl

from tunewright.jobs.process import rank
from tunewright.trainer import ranks
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
        for batch, counts in _batches(trainer):
            trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
            inputs = trainer._prepare_inputs(batch)
            # Training wraps the model in autocast; the evaluation before it computes in the same types.
            with trainer.accelerator.autocast(), _of_this_rank(trainer):
                for name, value in measure(model, inputs).items():
                    sums[name] += value if counts else 0.0
    model.train(was_training)
    return ranks.summed_over_ranks(sums)


def means_over_pairs(trainer: Trainer, measures: Collection[str]) -> dict[str, float]:
    """Evaluate a trainer of TRL whose batches have each pair as two rows: `eval_loss`, and these of the means that it
    logs. Each pair has the same weight."""

    def measured(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, float]:
        pairs = len(inputs["input_ids"]) / 2
        means = {"loss": float(trainer.compute_loss(model, inputs))}
        means |= {name: trainer._metrics["eval"][name][-1] for name in measures}
        trainer._metrics["eval"].clear()
        return {"pairs": pairs, **{name: mean * pairs for name, mean in means.items()}}

    sums = summed(trainer, measured)
    pairs = sums.pop("pairs")
    return tell(trainer, {f"eval_{name}": value / pairs for name, value in sums.items()})


def _batches(trainer: Trainer) -> Iterator[tuple[dict[str, Any], bool]]:
    """The batches of this rank, and whether each counts: every rank has as many, since those of a sharded model compute
    together."""
    number = ranks.number_of_ranks()
    if number == 1:
        for batch in trainer.get_eval_dataloader():
            yield batch, True
        return
    rows, at_a_time = trainer.eval_dataset, trainer.args.per_device_eval_batch_size
    batches = [range(begin, min(begin + at_a_time, len(rows))) for begin in range(0, len(rows), at_a_time)]
    own = [batches[n % len(batches)] for n in range(rank(), -(-len(batches) // number) * number, number)]
    counts = len(range(rank(), len(batches), number))
    loader = DataLoader(rows, batch_sampler=own, collate_fn=trainer.data_collator)
    for position, batch in enumerate(loader):
        yield batch, position < counts


@contextmanager
def _of_this_rank(trainer: Trainer) -> Iterator[None]:
    """Within it, what TRL gathers from all ranks for a measure is this rank's own."""
    accelerator = trainer.accelerator
    if ranks.number_of_ranks() == 1:
        yield
        return
    accelerator.gather = accelerator.gather_for_metrics = lambda value, **_: value
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def tell(trainer: Trainer, metrics: dict[str, float]) -> dict[str, float]:
    """Log the metrics of an evaluation, whose names begin with `eval_`, and tell the callbacks."""
    trainer.log(metrics)
    control: TrainerControl = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics
    )
    trainer.control = control
    return metrics
