"""Small suites in the forms of MMLU, C-Eval, GSM8K and HumanEval, written for the tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

MMLU: dict[str, dict[str, list[list[str]]]] = {
    "anatomy": {
        "dev": [
            ["Which organ pumps blood? ", "lung", "heart", "liver", "skin", "B"],
            ["How many lungs has a person,\nas a rule?", "1", "2", "3", "4", "B"],
            ["Where is the femur?", "arm", "head", "leg", "hand", "C"],
        ],
        "test": [
            ['What is "the skull"?', "a bone, or several", "a nerve", "a gland", "a vein", "A"],
            ["Which of them is a muscle?", "retina", "biceps", "cornea", "femur", "B"],
        ],
    },
    "high_school_physics": {
        "dev": [
            ["In which unit is force measured?", "joule", "watt", "newton", "volt", "C"],
            ["What falls faster in a vacuum?", "lead", "a feather", "wood", "all the same", "D"],
        ],
        "test": [["What is 2 m / 4 s?", "0.5 m/s", "2 m/s", "8 m/s", "6 m/s", "A"]],
    },
}
CEVAL: dict[str, dict[str, list[dict[str, str]]]] = {
    "law": {
        "dev": [
            {"id": "0", "question": "下列哪一项是法律？", "A": "民法典", "B": "小说", "C": "诗", "D": "歌",
             "answer": "A", "explanation": ""},
            {"id": "1", "question": "合同需要几方？", "A": "零", "B": "一", "C": "二", "D": "十",
             "answer": "C", "explanation": "两方"},
        ],
        "val": [{"id": "0", "question": "谁判案？", "A": "医生", "B": "法官", "C": "教师", "D": "厨师", "answer": "B"}],
    }
}  # fmt: skip
GSM8K: dict[str, list[dict[str, str]]] = {
    "train": [
        {"question": "Tom has 2 apples and buys 3. How many has he?", "answer": "He has 2 + 3 = <<2+3=5>>5.\n#### 5"},
        {"question": "A book costs $1,200. What do two cost?", "answer": "2 * 1200 = <<2*1200=2400>>2400\n#### 2,400"},
        {"question": "Half of 9?", "answer": "9 / 2 = <<9/2=4.5>>4.5\n#### 4.5"},
    ],
    "test": [
        {"question": "Ann has 4 pens and loses 1. How many has she?", "answer": "4 - 1 = <<4-1=3>>3\n#### 3"},
        {"question": "What is 10 times 1,000?", "answer": "10 * 1000 = <<10*1000=10000>>10000\n#### 10,000"},
    ],
}  # fmt: skip
HUMANEVAL: list[dict[str, str]] = [
    {
        "task_id": f"own/{number}",
        "prompt": f'def {name}(a, b):\n    """Return the {what} of a and b."""\n',
        "canonical_solution": f"    return a {sign} b\n",
        "test": f"def check(candidate):\n    assert candidate(6, 2) == {6 + 2 if sign == '+' else 6 - 2}\n",
        "entry_point": name,
    }
    for number, (name, what, sign) in enumerate([("add", "sum", "+"), ("subtract", "difference", "-")])
]
ANSWERS = [
    ("So it is 18.", "18"), ("#### 2,400", "2,400"), ("$1,200.", "1,200"), ("3.50", "3.5"), ("-7", "-7"), ("- 7", "7"),
    ("", "5"), ("no number", "5"), ("... and then", "5"), ("5 and 6", "6"), ("6 or 5", "6"), ("4.5", "4.5"), ("$", "5"),
    ("The answer is 10000 dollars", "10,000"), ("7%", "7"), ("1.", "1"), ("12,", "12"), ("Q: 3\nA: 3.", "3"),
]  # fmt: skip
"""Answers to GSM8K, and what is expected."""


def write_suites(folder: Path) -> Path:
    """The folder of `--eval-data`."""
    for subject, splits in MMLU.items():
        for split, rows in splits.items():
            _write(folder / "mmlu" / split / f"{subject}_{split}.csv", rows)
    for subject, of_subject in CEVAL.items():
        for split, records in of_subject.items():
            columns = list(records[0])
            _write(
                folder / "ceval" / split / f"{subject}_{split}.csv",
                [columns, *([one.get(column, "") for column in columns] for one in records)],
            )
    for split, lines in GSM8K.items():
        write_lines(folder / "gsm8k" / f"{split}.jsonl", lines)
    write_lines(folder / "humaneval" / "HumanEval.jsonl", HUMANEVAL)
    return folder


def write_lines(file: Path, rows: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write(file: Path, rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(rows)
