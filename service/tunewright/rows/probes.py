"""Built-in rows for adapters that were registered without data: short questions and answers of several kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.rows.canonical import Row, is_graded, is_labelled, is_preference, with_answer
from tunewright.rows.formats import read_rows
from tunewright.rows.sources import Source, SourceRow, in_shares

_TALKS = (
    (
        "What color is the sky on a clear day?",
        "The sky is blue, because air scatters blue light more than red.",
    ),
    (
        "Write a short poem about the sea.",
        "The sea is wide, the sea is deep,\nit rocks the little boats to sleep.",
    ),
    (
        "How do I boil an egg?",
        "1. Put the egg in boiling water.\n2. Wait eight minutes.\n3. Cool it and peel it.",
    ),
    ("What is 17 plus 25?", "17 plus 25 is 42."),
    (
        "Summarize: The meeting moved from Monday to Thursday, as two of us are away.",
        "The meeting is on Thursday.",
    ),
    ("Write a Python function that doubles a number.", "def double(number):\n    return 2 * number"),
    ("I am sad today.", "I am sorry to hear that. Would you like to tell me what happened?"),
    ("Translate to French: Good morning, my friend.", "Bonjour, mon ami."),
    ("Return the name and the age in JSON: Ann is 31.", '{"name": "Ann", "age": 31}'),
    ("Why do leaves fall in autumn?", "Trees let them go to save water and energy through the winter."),
    ("Is a whale a fish?", "No. A whale is a mammal: it breathes air and feeds its young with milk."),
    ("What should I wear in the rain?", "A raincoat and boots; take an umbrella with you."),
)


def probes(as_chat: bool) -> list[dict[str, Any]]:
    """The built-in rows, in the chat or the text format."""
    if as_chat:
        return [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
            for asked, said in _TALKS
        ]
    return [{"prompt": f"{asked}\n", "completion": said} for asked, said in _TALKS]


def rows_or_probes(files: Sequence[Source], *, as_chat: bool) -> Iterator[SourceRow]:
    """The rows of files in their shares, of preference rows with the better answer, of labelled rows those whose answer
    is good; or the probes where no file is given, and where their rows have no answers."""
    answered = [one for one in files if not _has_prompts_alone(one)]
    if not answered:
        return (SourceRow(None, number, row) for number, row in enumerate(probes(as_chat), 1))
    return in_shares([_rows(one) for one in answered], [one.share for one in answered])


def _has_prompts_alone(source: Source) -> bool:
    return any(is_graded(row) for _, row in islice(read_rows(Path(source.file), source.reading), 1))


def _rows(source: Source) -> Iterator[SourceRow]:
    for line, row in read_rows(Path(source.file), source.reading):
        if not is_labelled(row) or row["label"]:
            yield SourceRow(source.id, line, _as_supervised(row))


def _as_supervised(row: Row) -> Row:
    if is_preference(row):
        return with_answer(row, "chosen")
    return with_answer(row, "completion") if is_labelled(row) else row
