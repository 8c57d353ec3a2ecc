"""`tunewright data clean`: a new file and a table of counts, and clear words where the options are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunewright.cli.main import main

ROWS = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "A", "completion": "b"},
    {"prompt": "<b>c</b>", "completion": "d"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_it_writes_the_rows_that_are_left_and_counts_by_step(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("clean.jsonl")
    command = ["data", "clean", str(source), "-o", str(target), "--step", "duplicates", "--step", "html"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "rows before\t3" in printed
    assert "\nhtml\t\t\t0\t1\t0\t\n\tHTML\t1\t\t\t\t3\n" in printed
    assert len(target.read_text().splitlines()) == 2
    assert main(command) == 2, "it does not overwrite"
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "htm"], "no such step; there are html, secrets"),
        (["--step", "html:x=1"], "no option x; it has none"),
        (["--step", "length"], "length needs min_characters"),
        (["--step", "length:min_answer=a"], "min_answer: "),
        (["--step", "length:min_answer"], "is not OPTION=VALUE"),
        (["--step", "personal:action=x"], "action: "),
        (["--step", "html", "--step", "html"], "twice"),
        (["--step", "leaks"], "--validation-file"),
        (["--step", "html", "--column", "x=y"], "x is none of"),
        ([], "Missing option '--step'"),
    ],
)
def test_wrong_options_are_refused_with_what_is_possible(
    source: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    target = source.with_name("clean.jsonl")
    assert main(["data", "clean", str(source), "-o", str(target), *options]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_nothing_left_is_a_failure_with_the_counts_and_without_a_file(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("clean.jsonl")
    assert (
        main(["data", "clean", str(source), "-o", str(target), "--step", "length:min_answer=9", "--json"])
        == 1
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out)["steps"][0]["removed"] == 3
    assert "no row is left of 3" in printed.err
    assert not target.exists()
