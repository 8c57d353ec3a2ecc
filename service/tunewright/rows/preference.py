"""Examples of preference rows: each of the two answers is encoded as the one that a supervised row would teach."""

from __future__ import annotations

from collections.abc import Callable

from tunewright.rows.canonical import ANSWERS, with_answer
from tunewright.rows.examples import Example, Pair, Row, UnusableRow


def encode_pair(row: Row, encode: Callable[[Row], list[Example]]) -> Pair:
    """`encode` makes the examples of a supervised row. Raises UnusableRow."""
    chosen, rejected = (_encoded(row, name, encode) for name in ANSWERS)
    return Pair(chosen, rejected)


def _encoded(row: Row, name: str, encode: Callable[[Row], list[Example]]) -> Example:
    try:
        examples = encode(with_answer(row, name))
    except UnusableRow as error:
        raise UnusableRow(f"the {name} answer: {error}") from error
    if len(examples) != 1:
        raise UnusableRow(
            f"the {name} answer has several messages of the assistant, and the chat template writes earlier ones anew "
            "in each later prompt, so that they are no single answer: use one message for each answer"
        )
    return examples[0]
