"""The measures of `text_similarity`, from 0 to 1.

ROUGE is the F measure of rouge-score (lower case, words of letters and digits, here of any alphabet). BLEU is
sacrebleu's of a sentence (exponential smoothing, no orders that a short text cannot have), GLEU is nltk's (Wu et al.
2016); both on words and single punctuation marks, case-sensitive. A test holds each to its original.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

MOST_CHARACTERS = 100_000
"""Of each text."""
_ORDER = 4
"""The longest n-grams of BLEU and GLEU."""
_WORDS = re.compile(r"[^\W_]+")
_TOKENS = re.compile(r"\w+|[^\w\s]")


def similarity(metric: str, text: str, reference: str) -> float:
    """How near a text is to the reference. Raises ValueError where one is too long."""
    for one in (text, reference):
        if len(one) > MOST_CHARACTERS:
            raise ValueError(f"a text that is compared has more than {MOST_CHARACTERS} characters")
    return METRICS[metric](text, reference)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def _rouge(n: int) -> Callable[[str, str], float]:
    def measure(text: str, reference: str) -> float:
        ours, theirs = (_ngrams(_WORDS.findall(one.lower()), n) for one in (text, reference))
        return _f1((ours & theirs).total(), ours.total(), theirs.total())

    return measure


def _rouge_l(text: str, reference: str) -> float:
    ours, theirs = (_WORDS.findall(one.lower()) for one in (text, reference))
    return _f1(LCSseq.similarity(ours, theirs), len(ours), len(theirs))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def _bleu(text: str, reference: str) -> float:
    ours, theirs = _TOKENS.findall(text), _TOKENS.findall(reference)
    if not ours or not theirs:
        return 0.0
    orders, missed, logs = 0, 0, 0.0
    for n in range(1, min(_ORDER, len(ours)) + 1):
        of_text = _ngrams(ours, n)
        common = (of_text & _ngrams(theirs, n)).total()
        if n == 1 and not common:
            return 0.0
        if not common:
            missed += 1
        orders += 1
        logs += math.log((common or 2.0**-missed) / of_text.total())
    brevity = min(0.0, 1 - len(theirs) / len(ours))
    return math.exp(brevity + logs / orders)


def _gleu(text: str, reference: str) -> float:
    ours, theirs = _TOKENS.findall(text), _TOKENS.findall(reference)
    common = most = 0
    for n in range(1, _ORDER + 1):
        of_text, of_reference = _ngrams(ours, n), _ngrams(theirs, n)
        common += (of_text & of_reference).total()
        most += max(of_text.total(), of_reference.total())
    return common / most if most and ours and theirs else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": lambda text, reference: fuzz.ratio(text, reference) / 100,
    "bleu": _bleu,
    "gleu": _gleu,
    **{f"rouge_{n}": _rouge(n) for n in range(1, 6)},
    "rouge_l": _rouge_l,
}
