"""How texts are made comparable: the part that counts, labels, and words as SQuAD's script has them."""

from __future__ import annotations

import re
import string
from collections import Counter

from tunewright.metrics.names import Extract

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def extracted(text: str, how: Extract) -> str:
    """The part of a text that is compared; the whole text where it has no such part. A number has no commas, no plus
    sign and no zeros that mean nothing: `1,200.50` becomes `1200.5`."""
    text = text.strip()
    if how == "last_number":
        found = _NUMBER.findall(text)
        return _plain_number(found[-1]) if found else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if how == "whole" or not lines:
        return text
    return lines[0 if how == "first_line" else -1]


def _plain_number(text: str) -> str:
    sign, digits = ("-" if text.startswith("-") else ""), text.lstrip("+-").replace(",", "")
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return number if number == "0" else sign + number


def label(text: str) -> str:
    """A text as a label: case, outer white space and a full stop at the end do not count."""
    return text.strip().removesuffix(".").rstrip().casefold()


def squad_normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space (evaluate-v2.0.py of SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, expected: str) -> bool:
    return squad_normalized(answer) == squad_normalized(expected)


def token_f1(answer: str, expected: str) -> float:
    """F1 of the words that both have (SQuAD); 1 or 0 where one of them has none."""
    said, wanted = squad_normalized(answer).split(), squad_normalized(expected).split()
    if not said or not wanted:
        return float(said == wanted)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))
