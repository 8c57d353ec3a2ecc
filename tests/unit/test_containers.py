"""What `rows.containers` promises: the same rows out of every container, faults with their place, bounded reading."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.rows.containers import compressed, csv_text, json_text
from tunewright.rows.formats import DataFormat, InvalidData, Reading, check_file, inspect, read_rows

TEXT_ROWS = [{"prompt": f"What is {n}?", "completion": f' "{n}",\nor so'} for n in range(5)]
CHAT_ROWS = [
    {
        "messages": [
            {"role": "user", "content": "café \U0001f600"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                ],
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[Any]) -> bytes:
    target = io.StringIO()
    writer = csv.DictWriter(target, list(rows[0]))
    writer.writeheader()
    writer.writerows(
        {
            key: value if isinstance(value, str | bool) else json.dumps(value, ensure_ascii=False)
            for key, value in row.items()
        }
        for row in rows
    )
    return target.getvalue().encode()


def as_parquet(rows: list[Any], **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target, **options)
    return target.getvalue()


CONTAINERS = {
    "jsonl": jsonl,
    "jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "json": lambda rows: json.dumps(rows).encode(),
    "json.gz": lambda rows: gzip.compress(json.dumps(rows, indent=2).encode()),
    "csv": as_csv,
    "csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "parquet": as_parquet,
}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: bytes) -> Path:
        path = tmp_path / "file-1"  # the name says nothing
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("rows", [TEXT_ROWS, CHAT_ROWS], ids=["text", "chat"])
def test_every_container_is_recognised_and_gives_the_same_rows(written: Any, name: str, rows: Any) -> None:
    path = written(CONTAINERS[name](rows))
    report = check_file(path)
    assert (report.container, report.rows) == (name, len(rows))
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": TEXT_ROWS, "version": 1}).encode(),
        b"\xef\xbb\xbf" + json.dumps(TEXT_ROWS, indent=4).encode(),
        b"\n\n  " + json.dumps(TEXT_ROWS).encode() + b"\n",
    ],
)
def test_arrays_with_something_around_them_are_read(written: Any, content: bytes) -> None:
    path = written(content)
    assert check_file(path).container == "json"
    assert list(read_rows(path)) == list(enumerate(TEXT_ROWS, 1))


def test_rows_of_an_array_may_lie_over_any_border_of_reading(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "_CHUNK", 3)
    rows = [*TEXT_ROWS, {"prompt": "é" * 50, "completion": '\\"' * 20}]
    path = written(json.dumps(rows, indent=1, ensure_ascii=False).encode())
    assert [row for _, row in read_rows(path)] == rows


GOOD = json.dumps(TEXT_ROWS[0])
BROKEN_ARRAYS = {
    f"[{GOOD}, {GOOD}": (2, "the file ends"),
    f"[{GOOD}, {{]": (2, "not valid JSON"),
    f"[{GOOD}\n {GOOD}]": (1, '"{" where a comma was expected in line 2'),
    f'[{GOOD}, {{"prompt": NaN, "completion": "x"}}]': (2, "NaN is not valid JSON"),
    f'[{GOOD}, {{"prompt": {"1" * 5000}}}]': (2, "a number of more than 4300 digits"),
    f'[{GOOD}, {{"prompt": "\\ud800", "completion": "x"}}]': (2, "half of a surrogate pair"),
    f"[{GOOD}, {'[' * 200_000}]": (2, "nested too deeply"),
    f"[{GOOD}, 5]": (2, "a row must be a JSON object, not a number"),
    f'[{GOOD}, {{"prompt": "\udcff", "completion": "x"}}]': (2, "not UTF-8 text"),
}


@pytest.mark.parametrize("content", BROKEN_ARRAYS, ids=range(len(BROKEN_ARRAYS)))
def test_a_fault_in_an_array_is_told_with_its_row(written: Any, content: str) -> None:
    row, message = BROKEN_ARRAYS[content]
    report = inspect(io.BytesIO(content.encode("utf-8", "surrogateescape")))
    (fault,) = report.faults
    assert str(fault).startswith(f"row {row}: ")
    assert message in fault.message


def test_rows_behind_a_faulty_one_of_an_array_are_checked_too(written: Any) -> None:
    content = json.dumps([{"prompt": 1}, TEXT_ROWS[0], {"prompt": 2, "completion": ""}]).encode()
    report = inspect(io.BytesIO(content))
    assert [fault.place for fault in report.faults] == [1, 3]
    assert report.rows == 3


def test_line_ends_of_old_macs_are_told_as_such() -> None:
    report = inspect(io.BytesIO(b"prompt,completion\ra,b\rc,d\r"))
    assert "lines end with CR alone" in str(report.faults[0])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_every_delimiter_and_with_windows_line_ends_are_read(written: Any, delimiter: str) -> None:
    target = io.StringIO()
    writer = csv.DictWriter(target, ["prompt", "completion"], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(TEXT_ROWS)
    path = written(b"\xef\xbb\xbf" + target.getvalue().encode())
    assert [row for _, row in read_rows(path)] == TEXT_ROWS


def test_a_fault_in_a_table_is_told_with_the_line_in_which_its_row_begins(written: Any) -> None:
    content = b'prompt,completion\n"a\nb",c\nd\n"e",\nf,\xff\ng,"h"i\n'
    report = inspect(io.BytesIO(content))
    found = [(fault.place, fault.message) for fault in report.faults]
    assert [place for place, _ in found] == [4, 5, 6, 7]
    assert found[0][1] == 'has 1 cells, and the header 2 ("completion", "prompt")'
    assert "is empty" in found[1][1]
    assert found[2][1] == "not UTF-8 text"
    assert "not valid CSV" in found[3][1]


def test_a_quote_that_is_never_closed_is_not_read_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_text, "LONGEST_ROW", 2**16)
    monkeypatch.setattr(json_text, "LONGEST_ROW", 2**16)
    report = inspect(io.BytesIO(b'prompt,completion\nx,"' + b"y\n" * 2**17))
    assert report.problem is not None
    assert report.problem.startswith("line 2: ")


def test_columns_of_a_table_that_mean_nothing_are_left_out_and_named(written: Any) -> None:
    rows = [{**row, "id": 5, "source": "web"} for row in TEXT_ROWS]
    path = written(as_csv([{k: str(v) for k, v in row.items()} for row in rows]))
    assert check_file(path).ignored == {"id": 5, "source": 5}
    assert [row for _, row in read_rows(path)] == TEXT_ROWS
    assert [row for _, row in read_rows(written(as_parquet(rows)))] == TEXT_ROWS


def test_nulls_that_a_table_writes_into_every_object_are_none(written: Any) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}
    ]
    path = written(as_parquet(rows))
    assert [row for _, row in read_rows(path)] == rows


def test_a_parquet_value_without_a_place_in_json_is_a_fault_of_its_row() -> None:
    table = pa.table({"prompt": ["a", "b"], "completion": pa.array([b"\xff", b"x"], pa.binary())})
    target = io.BytesIO()
    pq.write_table(table, target)
    target.seek(0)
    report = inspect(target)
    assert [fault.place for fault in report.faults] == [1, 2]
    assert "a value of type binary (ff) has no place" in report.faults[0].message


def test_a_parquet_file_without_a_known_column_says_which_it_has() -> None:
    report = inspect(io.BytesIO(as_parquet([{"question": "a", "answer": "b"}])))
    assert report.refusal is not None
    assert '"answer", "question"' in report.refusal
    columns = {"prompt": "question", "completion": "answer"}
    report = inspect(io.BytesIO(as_parquet([{"question": "a", "answer": "b"}])), Reading(columns=columns))
    assert (report.format, report.problem) == (DataFormat.PROMPT_COMPLETION, None)


def test_a_parquet_file_that_is_cut_off_is_refused() -> None:
    whole = as_parquet(TEXT_ROWS * 100)
    for end in (4, len(whole) // 2, len(whole) - 1):
        assert "Parquet file is damaged" in (inspect(io.BytesIO(whole[:end])).refusal or "")


def test_gzip_that_is_cut_off_or_made_to_fill_the_reader_is_refused(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gzip.compress(jsonl(TEXT_ROWS * 100))
    for content in (whole[:-9], whole[:20], whole + b"more"):
        with pytest.raises(InvalidData, match="compression is damaged"):
            check_file(written(content))
    monkeypatch.setattr(compressed, "_SPARE", 0)
    bomb = gzip.compress(jsonl([{"prompt": "", "completion": "x" * 1000}]) * 20_000)
    with pytest.raises(InvalidData, match="expands to more than 200 times"):
        check_file(written(bomb))
    with pytest.raises(InvalidData, match="compressed twice"):
        check_file(written(gzip.compress(gzip.compress(jsonl(TEXT_ROWS)))))


BODIES = {name: make(TEXT_ROWS) for name, make in CONTAINERS.items()}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(BODIES)), st.data())
def test_damaged_files_raise_nothing_but_invalid_data(written: Any, name: str, data: Any) -> None:
    """Bytes changed, removed and added in files of every kind."""
    content = bytearray(BODIES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = written(bytes(content))
    try:
        report = check_file(path)
    except InvalidData:
        return
    assert report.rows == len(list(read_rows(path)))


@pytest.mark.parametrize("prompt", ['\n{"a": 1}', "{name} is", '{"a": 1}', "\n{", "it is \0"])
def test_json_in_the_cells_of_a_table_is_text(written: Any, prompt: str) -> None:
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": prompt, "completion": prompt}]
    assert [row for _, row in read_rows(written(CONTAINERS["csv"](rows)))] == rows


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=6),
    st.sampled_from(sorted(CONTAINERS)),
)
def test_any_text_comes_out_of_a_container_as_it_went_in(written: Any, pairs: Any, name: str) -> None:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    path = written(CONTAINERS[name](rows))
    assert [row for _, row in read_rows(path)] == rows
