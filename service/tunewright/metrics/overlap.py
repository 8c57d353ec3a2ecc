"""ROUGE, BLEU and chrF, as numbers of each row from which the figure of any set of rows can be computed.

The definitions are those of rouge-score 0.1 (no stemming) and sacrebleu 2 (BLEU: tokenizer 13a, four n-grams,
exponential smoothing; chrF: six character n-grams, beta 2); a test compares with them. They are written here since the
figures of 10,000 bootstrap samples are made of sums over rows, which neither library offers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BLEU_ORDER, _CHRF_ORDER, _BETA = 4, 6, 2
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
_MTEVAL = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
"""mteval-v13a.pl, as sacrebleu has it."""


def rouge_words(text: str) -> list[str]:
    """rouge-score's words: of the letters a to z and digits only."""
    return _NOT_ROUGE.sub(" ", text.lower()).split()


def rouge_n(answer: Sequence[str], expected: Sequence[str], n: int) -> float:
    """F1 of the n-grams of words."""
    said, wanted = _ngrams(answer, n), _ngrams(expected, n)
    return _f1(sum((said & wanted).values()), said.total(), wanted.total())


def rouge_l(answer: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    return _f1(_common_length(answer, expected), len(answer), len(expected))


def _f1(same: int, said: int, wanted: int) -> float:
    return 2 * same / (said + wanted) if same else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, by the bits of one integer (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    free = every
    for word in second:
        matched = free & places.get(word, 0)
        free = ((free + matched) | (free - matched)) & every
    return len(first) - free.bit_count()


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def bleu_words(text: str) -> list[str]:
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for escaped, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(escaped, character)
    text = f" {text} "
    for pattern, replacement in _MTEVAL:
        text = pattern.sub(replacement, text)
    return text.split()


def bleu_numbers(answer: str, expected: str) -> list[float]:
    """Of a row: words of the answer and of the expected one, then matches and n-grams of the answer for each order."""
    said, wanted = bleu_words(answer), bleu_words(expected)
    numbers = [len(said), len(wanted)]
    for n in range(1, _BLEU_ORDER + 1):
        ours = _ngrams(said, n)
        numbers += [(ours & _ngrams(wanted, n)).total(), ours.total()]
    return [float(number) for number in numbers]


def bleu(sums: Floats) -> Floats:
    """BLEU, 0 to 100, of sums of `bleu_numbers`; shape (sets, 10)."""
    return np.array([_bleu(one.tolist()) for one in sums])


def _bleu(sums: list[float]) -> float:
    said, wanted, *counts = sums
    matches, totals = counts[::2], counts[1::2]
    if not any(matches):
        return 0.0
    logs, smoothing = 0.0, 1.0
    for match, total in zip(matches, totals, strict=True):
        if not total:
            return 0.0
        if not match:
            smoothing *= 2
            match = 1 / smoothing
        logs += math.log(match / total)
    brevity = min(0.0, 1 - wanted / said)
    return 100 * math.exp(logs / _BLEU_ORDER + brevity)


def chrf_numbers(answer: str, expected: str) -> list[float]:
    """Of a row, for each order: n-grams of the answer, of the expected one, and common ones. White space does not
    count."""
    said, wanted = "".join(answer.split()), "".join(expected.split())
    numbers = []
    for n in range(1, _CHRF_ORDER + 1):
        ours, theirs = (
            Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in (said, wanted)
        )
        numbers += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return [float(number) for number in numbers]


def chrf(sums: Floats) -> Floats:
    """chrF, 0 to 100, of sums of `chrf_numbers`; shape (sets, 18)."""
    orders = sums.reshape(len(sums), _CHRF_ORDER, 3)
    said, wanted, same = orders[..., 0], orders[..., 1], orders[..., 2]
    counts = (said > 0) & (wanted > 0)
    used = np.maximum(counts.sum(1), 1)
    precision = np.where(counts, same / np.maximum(said, 1), 0).sum(1) / used
    recall = np.where(counts, same / np.maximum(wanted, 1), 0).sum(1) / used
    below = _BETA**2 * precision + recall
    above = (1 + _BETA**2) * precision * recall
    return np.asarray(100 * above / np.where(below > 0, below, 1))
