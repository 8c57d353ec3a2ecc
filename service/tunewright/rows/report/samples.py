"""Rows as the model gets them: the text of their examples, and which tokens are trained. Imports transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from tunewright.rows.dataset import RowEncoder
from tunewright.rows.examples import IGNORED, Example, UnusableRow
from tunewright.rows.formats import read_rows
from tunewright.rows.report.models import Sample, Segment
from tunewright.rows.report.survey import characters

if TYPE_CHECKING:
    from tunewright.rows.lengths import Question

_SEQUENCES_OF_A_ROW = 2
_SEGMENTS = 40
_LARGEST_SHOWN = 500_000
"""Characters of a row; larger ones would take long for what is shown of them."""
_BEGINNING, _END = 400, 200
"""Characters that are shown of a long segment."""


def samples_of(
    question: Question,
    tokenizer: PreTrainedTokenizerBase,
    encoder: RowEncoder,
    on_prepared: Callable[[], None],
) -> list[Sample]:
    """Examples of the first rows of a file; a row that cannot be encoded, or is huge, has none. Raises InvalidData.

    `on_prepared` is called before a row is encoded, when all is imported.
    """
    shown: list[Sample] = []
    rows = read_rows(question.file, question.reading)
    for place, row in islice(rows, max(1, question.samples)):
        encoder.prepare(row)
        on_prepared()
        if not question.samples:
            break
        if characters(row) > _LARGEST_SHOWN:
            continue
        try:
            examples = encoder.encoded(row)
        except UnusableRow:
            continue
        shown += [
            Sample(
                line=place if question.unit == "line" else None,
                row=place if question.unit == "row" else None,
                tokens=len(example.input_ids),
                trained=sum(label != IGNORED for label in example.labels[1:]),
                segments=segments(example, tokenizer, question.max_length),
            )
            for example in islice(chain.from_iterable(one.sequences for one in examples), _SEQUENCES_OF_A_ROW)
        ]
    return shown


def segments(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Segment]:
    """The text of an example up to `max_length` tokens, in pieces that are trained on or not."""
    pairs = list(zip(example.input_ids, example.labels, strict=True))[:max_length]
    pieces = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [
        Segment(text=_text([id for id, _ in piece], tokenizer), trained=trained)
        for trained, piece in islice(pieces, _SEGMENTS)
    ]


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if len(text) <= _BEGINNING + _END:
        return text
    return f"{text[:_BEGINNING]} [...] {text[-_END:]}"
