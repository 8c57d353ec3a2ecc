"""The suites by which forgetting is measured, asked as lm-evaluation-harness 0.4.13 asks them, from files that the operator
provides (docs/decisions/0047).

| suite | files in the operator's folder | asked | right |
|---|---|---|---|
| mmlu | `mmlu/dev/*_dev.csv`, `mmlu/test/*_test.csv`, without a header | completions, examples of the subject's dev file | the letter with the largest log-probability |
| ceval | `ceval/dev/*_dev.csv`, `ceval/val/*_val.csv`, with a header | likewise, in Chinese | likewise |
| gsm8k | `gsm8k/train.jsonl`, `gsm8k/test.jsonl` | completions, the first rows of the train file as examples | the last number |
| humaneval | `humaneval/*.jsonl` with `prompt`, `test` and `entry_point` | completions of each prompt | the tests pass |

Reads no more than these files, and nothing of a network.
"""  # noqa: E501

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunewright.evaluator.ceval import SUBJECTS
from tunewright.evaluator.questions import Question
from tunewright.metrics.names import MetricName, SuiteName
from tunewright.rows.faults import InvalidData

LETTERS = ("A", "B", "C", "D")
_Row = TypeVar("_Row")
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


@dataclass(frozen=True)
class SuiteQuestion(Question):
    """A question with examples before it, of which as many are asked with as the context has room for."""

    head: str = ""
    """Text before the examples."""
    shots: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """Answers of which the likeliest is the model's."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends."""
    test: str | None = None
    """A program that is run behind the prompt and the answer, and fails where the answer is wrong."""

    def forms(self) -> Iterator[dict[str, Any]]:
        for left_out in range(len(self.shots) + 1):
            yield {"prompt": self.head + "".join(self.shots[left_out:]) + (self.prompt or "")}

    def compared(self, answer: str) -> str:
        return answer if self.choices or self.test is not None else last_number(answer)


@dataclass(frozen=True)
class Suite:
    name: SuiteName
    folders: tuple[str, ...]
    """Patterns of its files, in the order in which they are read; the last ones have the questions."""
    read: Callable[[Path, int], Iterator[SuiteQuestion]]
    """Of the suite's folder and a number of examples."""
    shots: int
    limit: float
    """By how much of the base's share of right answers a model may be below it."""
    chance: float
    """The share of right answers of a model that knows nothing."""
    max_tokens: int

    def metrics(self, samples: int) -> tuple[MetricName, ...]:
        if self.name != "humaneval":
            return ("accuracy",)
        known: tuple[tuple[int, MetricName], ...] = (
            (1, "pass_at_1"),
            (10, "pass_at_10"),
            (100, "pass_at_100"),
        )
        return tuple(name for k, name in known if k <= samples)

    def files(self, data: Path) -> list[Path]:
        """Those of the operator's folder. Raises InvalidData where some are missing."""
        found = []
        for pattern in self.folders:
            matching = sorted((data / self.name).glob(pattern))
            if not matching:
                raise InvalidData(f"there is no {self.name}/{pattern} in the folder of --eval-data")
            found += matching
        return found

    def sha256(self, data: Path) -> str:
        """Of all its files. Raises InvalidData and OSError."""
        digest = hashlib.sha256()
        for file in self.files(data):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(data)}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def questions(self, data: Path, shots: int | None) -> list[SuiteQuestion]:
        """All of them. Raises InvalidData and OSError."""
        self.files(data)
        try:
            found = list(self.read(data / self.name, self.shots if shots is None else shots))
        except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
            raise InvalidData(f"the files of {self.name} are not as expected: {error!r}") from error
        if not found:
            raise InvalidData(f"the files of {self.name} have no question")
        return found


def last_number(text: str) -> str:
    """The last number of a text as GSM8K's filter `flexible-extract` finds it, without commas, dollar signs and a full
    stop at the end; the empty text where there is none."""
    found = _NUMBER.findall(text)
    if not found:
        return ""
    return (
        next((one for one in found[-1] if one), "")
        .strip()
        .replace(",", "")
        .replace("$", "")
        .removesuffix(".")
    )


def _multiple_choice(
    folder: Path,
    part: str,
    shots: int,
    read: Callable[[Path], list[_Row]],
    head: Callable[[str], str],
    text: Callable[[_Row], str],
    right: Callable[[_Row], str],
) -> Iterator[SuiteQuestion]:
    """The questions of the part's file of each subject, with examples of the subject's file in `dev`."""
    place = 0
    for file in sorted(folder.glob(f"{part}/*_{part}.csv")):
        subject = file.name.removesuffix(f"_{part}.csv")
        examples = read(folder / "dev" / f"{subject}_dev.csv")[:shots]
        for row in read(file):
            place += 1
            yield SuiteQuestion(
                place,
                _letter(right(row)),
                prompt=text(row),
                head=head(subject),
                shots=tuple(f"{text(one)} {_letter(right(one))}\n\n" for one in examples),
                choices=LETTERS,
            )


def _mmlu(folder: Path, shots: int) -> Iterator[SuiteQuestion]:
    def head(subject: str) -> str:
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"

    return _multiple_choice(folder, "test", shots, _rows, head, _mmlu_text, lambda row: row[5])


def _mmlu_text(row: list[str]) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0].strip()}{options}\nAnswer:"


def _rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.reader(opened))


def _letter(text: str) -> str:
    letter = text.strip()
    if letter not in LETTERS:
        raise ValueError(f"{text!r} is none of A, B, C and D")
    return letter


def _ceval(folder: Path, shots: int) -> Iterator[SuiteQuestion]:
    def head(subject: str) -> str:
        return f"以下是中国关于{SUBJECTS.get(subject, subject)}的单项选择题，请选出其中的正确答案。\n\n"

    return _multiple_choice(folder, "val", shots, _records, head, _ceval_text, lambda row: row["answer"])


def _ceval_text(row: dict[str, str]) -> str:
    options = "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS)
    return f"{row['question'].strip()}{options}\n答案："


def _records(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def _gsm8k(folder: Path, shots: int) -> Iterator[SuiteQuestion]:
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        examples = [json.loads(line) for _, line in zip(range(shots), file, strict=False)]
    texts = tuple(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in examples)
    for place, row in enumerate(_lines(folder / "test.jsonl"), start=1):
        yield SuiteQuestion(
            place,
            last_number(row["answer"].rpartition("####")[2]),
            prompt=f"Question: {row['question']}\nAnswer:",
            shots=texts,
            stop=("Question:", "</s>", "<|im_end|>"),
        )


def _humaneval(folder: Path, shots: int) -> Iterator[SuiteQuestion]:
    place = 0
    for file in sorted(folder.glob("*.jsonl")):
        for row in _lines(file):
            place += 1
            yield SuiteQuestion(
                place,
                row.get("canonical_solution", ""),
                prompt=row["prompt"],
                stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
                test=f"{row['test']}\ncheck({row['entry_point']})\n",
            )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as opened:
        for line in opened:
            if line.strip():
                yield json.loads(line)


SUITES: dict[SuiteName, Suite] = {
    one.name: one
    for one in (
        Suite("mmlu", ("dev/*_dev.csv", "test/*_test.csv"), _mmlu, 5, 0.05, 0.25, 1),
        Suite("ceval", ("dev/*_dev.csv", "val/*_val.csv"), _ceval, 5, 0.05, 0.25, 1),
        Suite("gsm8k", ("train.jsonl", "test.jsonl"), _gsm8k, 5, 0.10, 0.0, 256),
        Suite("humaneval", ("*.jsonl",), _humaneval, 0, 0.10, 0.0, 1024),
    )
}
