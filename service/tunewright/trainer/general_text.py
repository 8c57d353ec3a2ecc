"""How far a model has gone from the one that its training began with, on general text that is part of the package: a
sign of what it forgets that needs no data of the operator (docs/decisions/0046).

An adapter is compared with its base, which is the model with the adapter off; a model that is trained as a whole with
what it was before the first step, of which the job folder keeps the likeliest tokens. No second copy of the weights is
held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.jobs.process import rank
from tunewright.metrics.intervals import Table, interval, ratio
from tunewright.plan.forgetting import Forgetting, has_forgotten, passages
from tunewright.trainer.speed import uncompiled

LIKELIEST = 128
"""Tokens of each position that are compared one by one; all others count as one, so that the divergence is a lower
bound of that of the whole distributions, and a position needs little memory."""
_LONGEST = 512
"""Tokens of a passage, those of the text are far shorter; and of passages that are computed together, with padding."""
_POSITIONS = 32
"""Computed at a time in float32."""
_LEAST = 1e-6
"""Probability of all other tokens below which it is rounding."""
_SAMPLES = 1000
"""Of the bootstrap, which is repeated after each epoch."""
_TIMES = 10
"""How many times as many tokens as the text an epoch must have, for it to be measured at its end: a pass over the
text takes a third of the time of training as many tokens, so that it is at most a thirtieth of an epoch's."""


@dataclass(frozen=True)
class Passage:
    """What the model before training gives a passage's positions, whose next tokens are known. Shapes (positions) and
    (positions, likeliest)."""

    next_logps: torch.Tensor
    likeliest: torch.Tensor
    """Tokens."""
    logps: torch.Tensor
    """Theirs."""


class GeneralText(TrainerCallback):  # type: ignore[misc]
    """Measures the model before training, at its end, and at the end of each epoch that is long enough. Draws no random
    numbers."""

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: PreTrainedTokenizerBase,
        folder: JobFolder,
        on_measured: Callable[[dict[str, float]], None],
        beat: Callable[[], None],
        *,
        tokens_of_an_epoch: int,
        base_is_changed: bool = False,
    ) -> None:
        self._trainer = trainer
        self._on_measured = on_measured
        self._beat = beat
        self._base_is_changed = base_is_changed
        self._file = folder.reference / "general_text.npz"
        self._rows = encoded(tokenizer, _context(trainer))
        self._is_for_epochs = tokens_of_an_epoch >= _TIMES * sum(map(len, self._rows))
        self._before: list[Passage] | None = None
        self._measured_at: int | None = None
        self.latest: Forgetting | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._is_beside_its_base:
            self._begin(state.global_step)

    @property
    def _is_beside_its_base(self) -> bool:
        """Whether the model before training is there at any time: that without the adapter. Some initializations take
        a part of the base into the adapter, so that without it the model is another one."""
        return isinstance(self._trainer.model, PeftModel) and not self._base_is_changed

    def _begin(self, step: int) -> None:
        """Find out what the model was before training."""
        if self._is_beside_its_base:
            with self._trainer.model.disable_adapter():
                self._before = self._passages()
        elif self._file.is_file():
            self._before = _read(self._file)
        elif step == 0:
            self._before = self._passages()
            if rank() == 0:
                _write(self._file, self._before)
        # else: an earlier version of the service has begun the job, and what the weights were is not known

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        is_whole = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
        if is_whole and self._is_for_epochs:
            self.measure()

    def measure(self, *, again: bool = False) -> Forgetting | None:
        """What the model is now; None where there is nothing to compare with. Every rank must call it. `again`: it has
        other weights than when it was measured at this step."""
        step = self._trainer.state.global_step
        if self._before is None:  # nothing was kept, or no step was left to be trained
            self._begin(step)
        if self._before is None or not self._rows or (self._measured_at == step and not again):
            return self.latest
        sums = []
        for before, (row, logits) in zip(self._before, self._logits(), strict=True):
            sums.append(_compared(before, row, logits))
        self._measured_at, numbers = step, np.array(sums)
        # A model whose weights are no numbers any more is refused when it is published.
        self.latest = forgetting(numbers) if np.isfinite(numbers).all() else None
        if self.latest is not None:
            self._on_measured(self.latest.metrics)
        return self.latest

    def _passages(self) -> list[Passage]:
        return [_passage(row, logits) for row, logits in self._logits()]

    def _logits(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The next tokens of each passage, and the logits of the positions before them."""
        trainer = self._trainer
        model = trainer._wrap_model(trainer.model, training=False)
        was_training = model.training
        model.eval()
        try:
            for rows in batches(self._rows):
                self._beat()
                padded = torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(row) for row in rows], batch_first=True
                )
                mask = torch.zeros_like(padded)
                for number, row in enumerate(rows):
                    mask[number, : len(row)] = 1
                ids, mask = padded.to(trainer.args.device), mask.to(trainer.args.device)
                with torch.no_grad(), uncompiled(), trainer.accelerator.autocast():
                    logits = model(input_ids=ids, attention_mask=mask).logits
                for number, row in enumerate(rows):
                    yield ids[number, 1 : len(row)], logits[number, : len(row) - 1]
        finally:
            model.train(was_training)


def tell_forgetting(events: EventLog, found: Forgetting) -> None:
    """Tell the divergence, with a warning where it is beyond the bound."""
    events.message(found.describe(), data=found.model_dump())
    if warning := has_forgotten(found):
        events.message(warning, level="warn", data={"code": "forgets"})


def encoded(tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    """The tokens of each passage of the text, the shortest first, as a document that the model completes: without a
    chat template."""
    rows = [tokenizer(text)["input_ids"][: min(_LONGEST, context)] for text in passages()]
    return sorted((row for row in rows if len(row) > 1), key=len)


def batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Rows, the shortest first, as many together as have `_LONGEST` tokens with their padding."""
    begin = 0
    while begin < len(rows):
        end = begin + 1
        while end < len(rows) and (end + 1 - begin) * len(rows[end]) <= _LONGEST:
            end += 1
        yield rows[begin:end]
        begin = end


def forgetting(sums: np.ndarray[Any, np.dtype[np.float64]]) -> Forgetting:
    """Of the sums of each passage: KL, loss, loss before, and tokens."""
    kl = Table(sums[:, [0, 3]], ratio, scale=None)
    found = interval(kl, seed=0, samples=_SAMPLES)
    total = sums.sum(0)
    return Forgetting(
        kl=kl.value(),
        low=found.low,
        high=found.high,
        loss=total[1] / total[3],
        loss_before=total[2] / total[3],
        tokens=int(total[3]),
    )


def _passage(row: torch.Tensor, logits: torch.Tensor) -> Passage:
    nexts, tokens, logps = [], [], []
    for part, after in zip(logits.split(_POSITIONS), row.split(_POSITIONS), strict=True):
        every = part.float().log_softmax(-1)
        likeliest = every.topk(min(LIKELIEST, every.shape[-1]))
        nexts.append(every.gather(-1, after[:, None])[:, 0])
        tokens.append(likeliest.indices)
        logps.append(likeliest.values)
    return Passage(*(torch.cat(one).cpu() for one in (nexts, tokens, logps)))


def _compared(before: Passage, row: torch.Tensor, logits: torch.Tensor) -> tuple[float, float, float, float]:
    """Sums over the passage: KL, loss, loss before, and tokens."""
    kl = loss = 0.0
    parts = (logits, row, before.likeliest, before.logps)
    for part, after, likeliest, logps in zip(*(one.split(_POSITIONS) for one in parts), strict=True):
        every = part.float().log_softmax(-1)
        ours, theirs = every.gather(-1, likeliest.to(every.device)).cpu(), logps
        kl += float(_divergence(theirs.double(), ours.double()).sum())
        loss -= float(every.gather(-1, after[:, None]).sum())
    return kl, loss, -float(before.next_logps.double().sum()), float(len(row))


def _divergence(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """KL(before || now) of each position, over the tokens and one that stands for all others."""
    others_before = (1 - before.exp().sum(-1)).clamp(min=_LEAST)
    others_now = (1 - now.exp().sum(-1)).clamp(min=_LEAST)
    same = (before.exp() * (before - now)).sum(-1)
    return same + others_before * (others_before.log() - others_now.log())


def _context(trainer: Trainer) -> int:
    config = trainer.model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or _LONGEST)


def _write(file: Path, passages: list[Passage]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npz")
    lengths = [len(one.next_logps) for one in passages]
    np.savez(
        temporary,
        lengths=np.array(lengths),
        next_logps=torch.cat([one.next_logps for one in passages]).numpy(),
        likeliest=torch.cat([one.likeliest for one in passages]).numpy().astype(np.int32),
        logps=torch.cat([one.logps for one in passages]).numpy(),
    )
    temporary.replace(file)


def _read(file: Path) -> list[Passage]:
    with np.load(file) as kept:
        lengths = kept["lengths"].tolist()
        columns = [torch.from_numpy(kept[name]) for name in ("next_logps", "likeliest", "logps")]
    nexts, likeliest, logps = (column.split(lengths) for column in columns)
    return [Passage(*one) for one in zip(nexts, (part.long() for part in likeliest), logps, strict=True)]
