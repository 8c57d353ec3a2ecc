"""Packing: rows of a step share the sequences that pass through the model, each without a view of the others.

The rows of each optimizer step are those of a run without packing, and so is its loss. They are laid into sequences as
long as the longest of them (best fit decreasing, as TRL packs files), so that little is padding. A row's positions
begin at 0: where there is no attention mask, transformers makes one of them that separates the rows, and flash
attention takes the borders from them. That a model does so is looked at before the first step (`check_isolation`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.examples import IGNORED

Batch = dict[str, torch.Tensor]
_PROBE = 12
"""Tokens of each of two sequences."""
_SHARE = 0.05
"""Of what a sequence changes in the next one where nothing separates them, what it may change: rounding."""


def packed(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which rows share a sequence of `width` tokens: each, from the longest on, goes where it leaves the least room.
    No row is longer than `width`."""
    bins: list[list[int]] = []
    with_room = defaultdict[int, list[list[int]]](list)
    rooms: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(rooms, lengths[row])
        if place < len(rooms):
            room = rooms[place]
            found = with_room[room].pop(0)
            if not with_room[room]:
                del rooms[place]
        else:
            room, found = width, []
            bins.append(found)
        found.append(row)
        room -= lengths[row]
        if room and not with_room[room]:
            insort(rooms, room)
        with_room[room].append(found)
    return bins


class PackedCollator:
    """The rows of a step as packed sequences, with the position of each token in its row. Padding is a row of its own
    for each token, which nothing sees."""

    def __init__(self, pad_token_id: int) -> None:
        self._padding = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        lengths = [len(row["input_ids"]) for row in rows]
        bins = packed(lengths, max(lengths))
        shape = (len(bins), max(lengths))
        ids, labels = torch.full(shape, self._padding), torch.full(shape, IGNORED)
        mask, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for number, members in enumerate(bins):
            begin = 0
            for row in members:
                end = begin + lengths[row]
                ids[number, begin:end] = torch.tensor(rows[row]["input_ids"])
                labels[number, begin:end] = torch.tensor(rows[row]["labels"])
                labels[number, begin] = IGNORED  # what is before it is another row
                positions[number, begin:end] = torch.arange(lengths[row])
                begin = end
            mask[number, :begin] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}


def parts_of(batch: Batch, at_a_time: int, *, flat: bool) -> Iterator[Batch]:
    """A batch in parts of so many sequences; `flat`: each as one long sequence without padding, as flash attention
    takes it."""
    for begin in range(0, len(batch["input_ids"]), at_a_time):
        part = {name: value[begin : begin + at_a_time] for name, value in batch.items()}
        if flat:
            kept = part.pop("attention_mask").bool()
            part = {name: value[kept][None] for name, value in part.items()}
        yield part


def check_isolation(model: PreTrainedModel, base: str) -> None:
    """Raises TrainingFailed where a row changes with the row before it in its sequence."""
    vocabulary = model.config.get_text_config().vocab_size
    device = model.device
    first, second = torch.arange(1, 2 * _PROBE + 1, device=device).remainder(vocabulary).reshape(2, 1, _PROBE)
    both = torch.cat([first, second], dim=1)
    positions = torch.arange(_PROBE, device=device).repeat(2)[None]
    with _to_look_at(model):
        try:
            alone = model(input_ids=second, use_cache=False).logits[0].float()
            behind = model(input_ids=both, use_cache=False).logits[0, _PROBE:].float()
            isolated = (
                model(input_ids=both, position_ids=positions, use_cache=False).logits[0, _PROBE:].float()
            )
        except TypeError:  # it takes no positions
            raise _not_isolated(base) from None
    if (isolated - alone).abs().max() > _SHARE * (behind - alone).abs().max():
        raise _not_isolated(base)


def _not_isolated(base: str) -> TrainingFailed:
    return TrainingFailed(
        "packing_not_isolated",
        f"rows that share a sequence would see each other in {base}: leave tuning.packing out, and set "
        "tuning.group_by_length where rows differ much in length",
    )


@contextmanager
def _to_look_at(model: PreTrainedModel) -> Iterator[None]:
    was_training, kind = model.training, model.device.type
    model.eval()
    try:
        # As it is trained: flash attention takes 16 bits alone.
        with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16, enabled=kind != "cpu"):
            yield
    finally:
        model.train(was_training)
