"""Examples of rows with answers to judge: each answer is encoded as the one that a supervised row would teach."""

from __future__ import annotations

from collections.abc import Callable

from tunewright.rows.canonical import ANSWERS, with_answer
from tunewright.rows.examples import Example, Labelled, Pair, Row, UnusableRow


def encode_pair(row: Row, encode: Callable[[Row], list[Example]]) -> Pair:
    """Of a preference row. `encode` makes the examples of a supervised row. Raises UnusableRow."""
    chosen, rejected = (_encoded(row, name, encode) for name in ANSWERS)
    return Pair(chosen, rejected)


def encode_labelled(row: Row, encode: Callable[[Row], list[Example]]) -> Labelled:
    """Of a row whose answer is good or bad; `encode` as above. Raises UnusableRow."""
    return Labelled(_encoded(row, "completion", encode), row["label"])


def _encoded(row: Row, name: str, encode: Callable[[Row], list[Example]]) -> Example:
    what = "answer" if name == "completion" else f"{name} answer"
    try:
        examples = encode(with_answer(row, name))
    except UnusableRow as error:
        raise UnusableRow(f"the {what}: {error}") from error
    if len(examples) != 1:
        raise UnusableRow(
            f"the {what} has several messages of the assistant, and the chat template writes earlier ones anew "
            "in each later prompt, so that they are no single answer: use one message for each answer"
        )
    return examples[0]
