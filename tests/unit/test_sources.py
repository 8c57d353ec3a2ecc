"""Rows of several files: at any time each file has had its share of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.rows.probes import rows_or_probes
from tunewright.rows.reading import Reading
from tunewright.rows.sources import Source, in_shares


def endless(number: int) -> Iterator[tuple[int, int]]:
    return ((number, place) for place in count())


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=6), st.integers(1, 300))
def test_every_file_has_its_share_of_the_first_rows_and_at_least_one(shares: list[float], first: int) -> None:
    taken = list(islice(in_shares([endless(n) for n in range(len(shares))], shares), first))
    had = Counter(number for number, _ in taken)
    for number, share in enumerate(shares):
        assert [place for n, place in taken if n == number] == list(range(had[number])), "in its order"
        fair = first * share / sum(shares)
        assert had[number] < fair + 1 + 1e-9, "no file has a row before it is due"
        assert had[number] >= min(1, first // len(shares)), "each has one before any has two"


def test_the_turns_of_a_file_that_has_ended_go_to_the_others() -> None:
    files = [iter("ab"), iter("wxyz"), iter("")]
    assert "".join(in_shares(files, [2, 1, 5])) == "awbxyz"


def test_rows_are_taken_of_all_files_and_say_which(tmp_path: Path) -> None:
    sources = []
    for name, rows, share in (("file-1", 40, 3.0), ("file-2", 40, 1.0)):
        path = tmp_path / name
        row = [{"prompt": f"{name} {n}", "completion": "x"} for n in range(rows)]
        path.write_text("".join(json.dumps(one) + "\n" for one in row))
        sources.append(Source(file=str(path), share=share, reading=Reading()))
    taken = list(islice(rows_or_probes(sources, as_chat=False), 8))
    assert Counter(one.file for one in taken) == {"file-1": 6, "file-2": 2}
    assert all(one.row["prompt"] == f"{one.file} {one.line - 1}" for one in taken)


def test_files_of_prompts_alone_leave_their_place_to_others(tmp_path: Path) -> None:
    graded, answered = tmp_path / "graded", tmp_path / "answered"
    graded.write_text(json.dumps({"messages": [{"role": "user", "content": "?"}], "answer": "1"}) + "\n")
    answered.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    both = [Source(file=str(graded)), Source(file=str(answered))]
    assert [one.file for one in rows_or_probes(both, as_chat=True)] == ["answered"]
    probes = list(rows_or_probes(both[:1], as_chat=True))
    assert len(probes) > 8
    assert {one.file for one in probes} == {None}


@pytest.mark.parametrize("shares", [[1.0], [1.0, 2.0]])
def test_no_more_rows_are_read_than_are_needed(shares: list[float]) -> None:
    read: list[int] = []

    def reading(number: int) -> Iterator[int]:
        for place in count():
            read.append(number)
            yield place

    list(islice(in_shares([reading(n) for n in range(len(shares))], shares), 5))
    assert len(read) == 5
