"""A cleaning that is killed or stopped goes on where it was, and makes the file that it would have made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tunewright.rows.cleaning.clean import clean_file
from tunewright.rows.cleaning.saved import Keeper, Stopped, state_file
from tunewright.rows.cleaning.step import Options
from tunewright.rows.cleaning.steps.balance import BalanceOptions
from tunewright.rows.cleaning.steps.duplicates import DuplicatesOptions, NearDuplicatesOptions
from tunewright.rows.cleaning.steps.filters import LengthOptions
from tunewright.rows.cleaning.steps.html import HtmlOptions
from tunewright.rows.reading import Reading


class AtEachRow(Keeper):
    def is_due(self) -> bool:
        return True


STEPS: list[list[Options]] = [
    [HtmlOptions(), DuplicatesOptions()],
    [NearDuplicatesOptions(), LengthOptions(max_characters=60)],
    [DuplicatesOptions(), NearDuplicatesOptions(), BalanceOptions(by="topic", ratio=1.5)],
]


@pytest.mark.parametrize("steps", STEPS, ids=["exact", "near", "balanced"])
@pytest.mark.parametrize("killed_at", [1, 2, 57, 199])
def test_a_killed_cleaning_goes_on_and_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[Options], killed_at: int
) -> None:
    monkeypatch.setattr("tunewright.rows.cleaning.hashes._RECENT", 16)  # so that some are in sorted arrays
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    rows = [
        {
            "prompt": f"<b>Say</b> {' '.join(words[n % 7 : n % 7 + 5])}",
            "completion": f"{words[n % 5]} {n % 10}",
            "topic": words[n % 3],
        }
        for n in range(200)
    ]
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    calm, target = tmp_path / "calm.jsonl", tmp_path / "cleaned.jsonl"
    reading = Reading(columns={"prompt": "prompt", "completion": "completion"})
    expected = clean_file(source, calm, steps, reading=reading)

    child = os.fork()
    if child == 0:  # it saves at each row, and ends as by kill -9

        def die(row: int) -> None:
            if row == killed_at:
                os._exit(9)

        clean_file(source, target, steps, reading=reading, progress=die, keeper=AtEachRow())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not target.exists()

    read: list[int] = []
    report = clean_file(source, target, steps, reading=reading, progress=read.append, keeper=Keeper())
    assert read == list(range(killed_at, 201)), "the rows before are not read again"
    assert report == expected
    assert target.read_bytes() == calm.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm.jsonl", "cleaned.jsonl", "train.jsonl"]


def test_what_was_saved_and_is_damaged_is_not_used(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "cleaned.jsonl"
    source.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    for state, rows in ((b"damaged", b"half a row"), (b"", b"")):
        state_file(target).write_bytes(state)
        target.with_name(f".{target.name}.cleaned").write_bytes(rows)
        assert clean_file(source, target, [DuplicatesOptions()], keeper=Keeper()).rows_before == 3
        assert target.read_text() == '{"prompt": "a", "completion": "b"}\n'


def test_stopped_it_saves_what_is_done(tmp_path: Path) -> None:
    source, target = tmp_path / "train.jsonl", tmp_path / "cleaned.jsonl"
    source.write_text("".join(f'{{"prompt": "{n}", "completion": "b"}}\n' for n in range(9)))
    read: list[int] = []
    with pytest.raises(Stopped):
        clean_file(
            source, target, [DuplicatesOptions()], progress=read.append, keeper=Keeper(is_stopped=lambda: len(read) > 4)
        )  # fmt: skip
    report = clean_file(source, target, [DuplicatesOptions()], progress=read.append, keeper=Keeper())
    assert read == list(range(1, 10))
    assert report.rows_after == 9
