"""What `rows.held_out` promises: a part that depends on the content of rows alone, and never shares a row."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tunewright.rows.formats import Reading, check_file, read_rows
from tunewright.rows.held_out import is_held_out, place_of

ROWS = [{"prompt": f"What is {number}?", "completion": str(number)} for number in range(2000)]
SHARE = 0.05


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(path: Path) -> tuple[list[str], list[str]]:
    training, held_out = (
        [json.dumps(row) for _, row in read_rows(path, Reading(part=part, held_out_share=SHARE))]
        for part in ("training", "held_out")
    )
    return training, held_out


def test_every_row_is_in_one_part_and_the_share_is_about_the_stated_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", ROWS)
    training, held_out = parts(path)
    assert sorted(training + held_out) == sorted(json.dumps(row) for row in ROWS)
    assert not set(training) & set(held_out)
    assert 60 < len(held_out) < 140
    assert check_file(path, Reading(held_out_share=SHARE)).held_out == len(held_out)


def test_the_parts_do_not_depend_on_order_or_on_other_rows(tmp_path: Path) -> None:
    _, before = parts(write(tmp_path / "rows", ROWS[:1000]))
    mixed = random.Random(1).sample(ROWS, len(ROWS))
    _, after = parts(write(tmp_path / "mixed", mixed))
    assert set(before) <= set(after)


def test_a_row_that_differs_in_case_and_white_space_only_is_on_the_same_side() -> None:
    for row in ROWS:
        alike = {
            "completion": f" {row['completion']}\n",
            "prompt": row["prompt"].upper().replace(" ", " \t\n"),
        }
        assert place_of(alike) == place_of({**row, "completion": f" {row['completion']} "})
        assert is_held_out(dict(reversed(row.items())), SHARE) == is_held_out(row, SHARE)


def test_all_answers_to_a_held_out_prompt_are_held_out(tmp_path: Path) -> None:
    prompts = [f"What is {number}?" for number in range(300)]
    answers = [(prompt, f"{number}") for prompt in prompts for number in range(3)]
    asked = {prompt: [{"role": "user", "content": prompt}] for prompt in prompts}
    kinds = {
        "pairs": [{"prompt": prompt, "chosen": said, "rejected": "?"} for prompt, said in answers],
        "labels": [{"prompt": prompt, "completion": said, "label": said == "1"} for prompt, said in answers],
        "grades": [{"messages": asked[prompt], "answer": said} for prompt, said in answers],
    }
    for kind, rows in kinds.items():
        path = write(tmp_path / kind, rows)
        training, held_out = (
            {
                json.dumps(row.get("prompt", row.get("messages")))
                for _, row in read_rows(path, Reading(part=part, held_out_share=0.1))
            }
            for part in ("training", "held_out")
        )
        assert not training & held_out, kind
        assert len(held_out) > 10, kind
        assert len(training | held_out) == len(prompts)


def test_the_places_are_the_same_in_every_version() -> None:
    """Or a resumed job would validate on rows that it was trained on."""
    assert round(place_of({"prompt": "a", "completion": "b"}), 6) == 0.023214
