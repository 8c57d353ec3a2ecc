"""Measures models against a reference on given rows: loss, KL divergence, and top-1 agreement. Imports torch.

The candidates are streamed one at a time (see `streamed`), so that none is held in memory whole. Rows are processed in
batches; the weights are read once for each batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tunewright.evaluate.awq_weights import AwqWeights
from tunewright.evaluate.streamed import streamed_model
from tunewright.evaluate.weights import SafetensorsWeights, Weights

KEPT = 1024
"""How many of the reference's log-probabilities are kept for each position (8 kB)."""
_LOGITS = 2**29
"""Most logits in a batch: 1 GiB in 16 bits."""
_CHUNK = 2**26
"""Most logits in float32 at once: 256 MiB, and as much again for intermediate results."""

WeightsKind = Literal["plain", "awq"]


@dataclass(frozen=True)
class Candidate:
    """A model to measure. `folder` holds the model, with plain or AWQ's tensors; `adapter` is a PEFT folder."""

    name: str
    folder: Path
    weights: WeightsKind = "plain"
    adapter: Path | None = None
    dtype: torch.dtype | None = None
    """The dtype to compute in, where it differs from that of the others."""


@dataclass(frozen=True)
class Row:
    """Token ids, and for each whether its prediction counts. The first has no prediction, and never counts."""

    tokens: list[int]
    counted: list[bool]


@dataclass(frozen=True)
class Measured:
    """The measurements of one candidate, over the `tokens` that count.

    `loss` is the mean of -log p(token) in nats. `kl` is the mean of KL(reference || candidate) in nats, over the whole
    vocabulary where that has at most KEPT tokens; else over the reference's KEPT likeliest tokens, with all others as
    one, which is a lower bound (data processing inequality) and close, since the others have little probability.
    `agreement` is the share of positions at which the reference's likeliest token is also likeliest in the candidate;
    where several are equally likely, which is not rare in 16 bits, it is enough to be one of them. Each is None where a
    number in it was infinite or NaN; `finite` says whether all logits were finite.
    """

    name: str
    tokens: int
    loss: float | None
    kl: float | None
    agreement: float | None
    finite: bool


@dataclass(frozen=True)
class Quality:
    """The measurements of all candidates in the given order, with the reference. `exact`: KL over all tokens."""

    reference: str
    candidates: list[Measured]
    exact: bool

    def of(self, name: str) -> Measured:
        return next(measured for measured in self.candidates if measured.name == name)


@dataclass(frozen=True)
class _Kept:
    """The reference's predictions at the positions of a batch that count: [positions, K] on the host.

    `rest` is the log-probability of all other tokens together; None where there are no others.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    rest: torch.Tensor | None


def measure(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    *,
    reference: str,
    device: str,
    dtype: torch.dtype,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    trust_remote_code: bool = False,
) -> Quality:
    """Measure every candidate on `rows`, the one named `reference` first. All have the same vocabulary.

    `on_progress` is called with the number of batches done and of all, over all candidates. Raises ValueError where no
    token counts or no candidate is the reference, and UnsupportedFeature for models that cannot be streamed.
    """
    rows = [row for row in rows if any(row.counted[1:])]
    if not rows:
        raise ValueError("there is no token to measure")
    first = next((candidate for candidate in candidates if candidate.name == reference), None)
    if first is None:
        raise ValueError(f"no candidate is named {reference}")
    found: dict[str, Measured] = {}
    kept: list[_Kept] = []
    done = 0
    for candidate in (first, *(other for other in candidates if other is not first)):
        model = streamed_model(
            candidate.folder,
            weights=_weights(candidate),
            device=device,
            dtype=candidate.dtype or dtype,
            trust_remote_code=trust_remote_code,
            adapter=candidate.adapter,
        )
        batches = list(_batches(rows, model.config.get_text_config().vocab_size))
        sums = _Sums()
        for at, batch in enumerate(batches):
            predicted, expected = _logits(model, batch, device)
            if candidate is first:
                kept.append(_keep(predicted))
            sums.add(predicted, expected, kept[at])
            done += 1
            on_progress(done, len(batches) * len(candidates))
        found[candidate.name] = sums.measured(candidate.name)
    return Quality(
        reference=reference,
        candidates=[found[candidate.name] for candidate in candidates],
        exact=all(batch.rest is None for batch in kept),
    )


def _weights(candidate: Candidate) -> Weights:
    return (
        AwqWeights(candidate.folder) if candidate.weights == "awq" else SafetensorsWeights(candidate.folder)
    )


def _batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[Row]]:
    """Batches of rows of similar lengths, the longest first, so that a lack of memory shows at once."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) * vocabulary > _LOGITS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _logits(model: torch.nn.Module, batch: list[Row], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits [positions, vocabulary] that predict the tokens that count, in the model's dtype, and those tokens."""
    longest = max(len(row.tokens) for row in batch)
    tokens = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in batch])
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    for at, row in enumerate(batch):
        counted[at, 1 : len(row.tokens)] = torch.tensor(row.counted[1:], dtype=torch.bool)
    with torch.inference_mode():  # no mask is needed: tokens do not attend to the padding after them
        logits = model(input_ids=tokens.to(device), use_cache=False).logits
        predicting = logits[:, :-1][counted[:, 1:].to(device)]
    return predicting, tokens[:, 1:][counted[:, 1:]].to(device)


def _chunks(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Log-probabilities in float32, in blocks of positions."""
    for chunk in logits.split(max(1, _CHUNK // logits.shape[-1])):
        yield chunk.float().log_softmax(-1)


def _keep(logits: torch.Tensor) -> _Kept:
    ids, values, rest = [], [], []
    for logprobs in _chunks(logits):
        top = logprobs.topk(min(KEPT, logprobs.shape[-1]))
        ids.append(top.indices.to("cpu", torch.int32))
        values.append(top.values.cpu())
        rest.append(_others(logprobs, top.indices).cpu())
    return _Kept(torch.cat(ids), torch.cat(values), torch.cat(rest) if logits.shape[-1] > KEPT else None)


def _others(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probability of all tokens but `ids` together. Subtraction from 1 would amplify rounding errors."""
    return logprobs.scatter(-1, ids, -math.inf).logsumexp(-1)


class _Sums:
    """The sums over the batches of a candidate, in float64."""

    def __init__(self) -> None:
        self._tokens = 0
        self._loss = self._kl = self._agreed = 0.0
        self._finite = True

    def add(self, logits: torch.Tensor, expected: torch.Tensor, kept: _Kept) -> None:
        at = 0
        for logprobs in _chunks(logits):
            part = slice(at, at + len(logprobs))
            at = part.stop
            self._finite = self._finite and bool(logits[part].isfinite().all())
            ids = kept.ids[part].to(logprobs.device, torch.int64)
            theirs = kept.logprobs[part].to(logprobs.device)
            ours = logprobs.gather(-1, ids)
            if kept.rest is not None:
                theirs = torch.cat([theirs, kept.rest[part].to(logprobs.device)[:, None]], -1)
                ours = torch.cat([ours, _others(logprobs, ids)[:, None]], -1)
            # Tokens that are impossible in the reference contribute nothing, whatever the candidate says.
            terms = torch.where(theirs == -math.inf, 0.0, theirs.exp() * (theirs - ours))
            self._kl += terms.double().sum().item()
            self._loss -= logprobs.gather(-1, expected[part][:, None]).double().sum().item()
            self._agreed += (ours[:, 0] == logprobs.amax(-1)).sum().item()
            self._tokens += len(logprobs)

    def measured(self, name: str) -> Measured:
        return Measured(
            name=name,
            tokens=self._tokens,
            loss=_finite(self._loss / self._tokens),
            kl=_finite(self._kl / self._tokens),
            agreement=self._agreed / self._tokens if self._finite else None,
            finite=self._finite,
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
