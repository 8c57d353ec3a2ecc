"""What a file is in tokens of a base: the one place where plans and reports get it.

Where a job has tokenized the file before, its totals are read from the cache of tokens. Else
`python -m tunewright.rows.lengths`, with a `Question` on its standard input, counts them and prints an `Answer`: it
imports transformers, which the processes that answer requests do not. It runs within limits of time and memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures.process import BrokenProcessPool
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tunewright.apart import limit_memory
from tunewright.config import child_environment
from tunewright.imports import quick_imports
from tunewright.plan.data_shape import DataShape, extrapolated
from tunewright.rows.cache import TokenCache, cache_key
from tunewright.rows.reading import Reading
from tunewright.rows.report.models import Sample
from tunewright.rows.totals import Totals

_GRACE_SECONDS = 120
"""For starting, and for the rows that are under way when the time is over."""
_AT_ONCE = threading.Semaphore(2)
"""Processes; each uses all cores."""
_MEMORY = 4 * 2**30
"""Bytes of address space that each process may take beside what its libraries have."""
_NICENESS = 10
"""The processes that answer everybody come first."""
_MOST_KEPT = 32


class NotMeasured(Exception):
    """The file could not be tokenized; the message says why, and `param` what has to be changed."""

    def __init__(self, message: str, param: Literal["model", "file"] = "file") -> None:
        super().__init__(message)
        self.param = param


class Question(BaseModel):
    """A file, and how it would be tokenized."""

    model_config = ConfigDict(frozen=True)

    base: Path
    file: Path
    source: str = ""
    """The file's sha256; where there is none, nothing is looked up, nor kept."""
    reading: Reading = Reading()
    chat_template: str | None = None
    max_length: int
    truncation: str = "truncate"
    trust_remote_code: bool = False
    seconds: float = 300.0
    """In which rows are tokenized; those after it are not counted."""
    samples: int = 0
    """Rows to show."""
    unit: Literal["line", "row"] = "line"
    counts: bool = True

    def key(self) -> str:
        """The name of the file's tokens in a cache."""
        return cache_key(
            self.source,
            self.base,
            reading=self.reading,
            chat_template=self.chat_template,
            max_length=self.max_length,
            truncation=self.truncation,
            trust_remote_code=self.trust_remote_code,
        )


class Measured(BaseModel):
    """A file in tokens."""

    model_config = ConfigDict(frozen=True)

    totals: Totals
    faults: dict[int, str] = {}
    """The first lines that cannot be encoded, and why."""
    faulty: int = 0
    """How many there are."""
    is_complete: bool = True
    from_cache: bool = False
    samples: list[Sample] = []


class Answer(BaseModel):
    """Of the process: an error, or what it measured."""

    error: str | None = None
    param: Literal["model", "file"] = "file"
    measured: Measured | None = None
    samples: list[Sample] = []


_kept: OrderedDict[tuple[str, int], Measured] = OrderedDict()
_keeping = threading.Lock()


def measure(question: Question, cache: TokenCache | None = None) -> Measured:
    """Answer a question, in a process of its own where the cache has no answer. Raises NotMeasured."""
    if not question.source:
        return _ask(question)
    key = (question.key(), question.samples)
    with _keeping:
        if known := _kept.get(key):
            return known
    totals = cached_totals(cache, key[0]) if cache is not None else None
    if totals is None:
        found = _ask(question)
    else:
        shown = _answer(question.model_copy(update={"counts": False})).samples if question.samples else []
        found = Measured(totals=totals, from_cache=True, samples=shown)
    if found.is_complete:
        with _keeping:
            _kept[key] = found
            while len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
    return found


def cached_totals(cache: TokenCache, key: str) -> Totals | None:
    """Those of a file that was tokenized before."""
    entry = cache.find(key)
    if entry is None:
        return None
    try:
        return entry.totals()
    except (OSError, ValueError):  # of a damaged disk; the scheduler removes it
        return None
    finally:
        entry.close()


def shape_of(question: Question, cache: TokenCache | None = None, rows: int | None = None) -> DataShape:
    """The shape of a whole file, for a plan. Where not all of it is tokenized in time, that of the first rows is taken
    for all `rows` of the part that is read; where these are not known, it raises NotMeasured, as for a fault."""
    found = measure(question, cache)
    if found.faults:
        line, why = next(iter(found.faults.items()))
        raise NotMeasured(f"training_file, line {line}: {why}")
    if not found.is_complete and not (rows and found.totals.rows):
        raise NotMeasured(f"tokenizing the file took more than {question.seconds:.0f} s")
    totals = found.totals
    lengths = totals.whole_lengths
    shape = DataShape(
        totals.rows,
        totals.examples or sum(lengths.values()) // totals.per_example,
        sum(length * number for length, number in lengths.items()),
        totals.learnt + totals.lost,
        lengths,
        left_out=totals.left_out() if totals.examples else {},
    )
    return shape if found.is_complete or rows is None else extrapolated(shape, max(rows, totals.rows))


def _ask(question: Question) -> Measured:
    measured = _answer(question).measured
    assert measured is not None, "it was asked to count"
    return measured


def _answer(question: Question) -> Answer:
    command = [sys.executable, "-m", "tunewright.rows.lengths"]
    environment = child_environment({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        with _AT_ONCE:
            ended = subprocess.run(
                command,
                input=question.model_dump_json(),
                capture_output=True,
                text=True,
                timeout=question.seconds + _GRACE_SECONDS,
                env=environment,
                check=False,
            )
        answer = Answer.model_validate_json(ended.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise NotMeasured(
            f"tokenizing the file took more than {question.seconds + _GRACE_SECONDS:.0f} s: it has rows that take "
            "very long, or the machine is busy with other work"
        ) from None
    except (ValidationError, IndexError):
        reason = (ended.stderr.strip().splitlines() or ["it was ended"])[-1][-300:]
        raise NotMeasured(f"the process that tokenizes the file has failed: {reason}") from None
    if answer.error is not None:
        raise NotMeasured(answer.error, answer.param)
    return answer


# the process


def main() -> None:
    os.nice(_NICENESS)
    question = Question.model_validate_json(sys.stdin.read())
    try:
        answer = _answered(question)
    except (MemoryError, BrokenProcessPool):
        answer = Answer(error="its rows take too much memory to tokenize: make them shorter")
    except NotMeasured as error:
        answer = Answer(error=str(error), param=error.param)
    print(answer.model_dump_json())


def _answered(question: Question) -> Answer:
    with quick_imports():
        from transformers import AutoTokenizer

    from tunewright.jobs.failure import TrainingFailed
    from tunewright.rows.counts import Counts
    from tunewright.rows.dataset import RowEncoder, encoded_blocks
    from tunewright.rows.formats import InvalidData
    from tunewright.rows.report.samples import samples_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(question.base), local_files_only=True, trust_remote_code=question.trust_remote_code
        )
    except Exception as error:  # transformers raises many types for a folder without a usable tokenizer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise NotMeasured(f"its tokenizer cannot be loaded: {reason}", "model") from error
    if question.chat_template:
        tokenizer.chat_template = question.chat_template
    try:
        encoder = RowEncoder(tokenizer)
        shown = samples_of(question, tokenizer, encoder, on_prepared=once(partial(limit_memory, _MEMORY)))
        if not question.counts:
            return Answer(samples=shown)
        end = time.monotonic() + question.seconds
        counts = Counts(question.source, question.max_length)
        is_complete = True
        for block in encoded_blocks(
            question.file,
            tokenizer,
            question.max_length,
            reading=question.reading,
            refuses=False,
            splits=question.truncation == "split",
        ):
            counts.add(block)
            if time.monotonic() > end:
                is_complete = False
                break
    except (TrainingFailed, InvalidData) as error:
        raise NotMeasured(str(error)) from error
    return Answer(
        measured=Measured(
            totals=counts.totals(),
            faults=counts.faults,
            faulty=counts.faulty,
            is_complete=is_complete,
            samples=shown,
        )
    )


if __name__ == "__main__":
    main()
