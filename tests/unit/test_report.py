"""The report of a data file: what is counted, marked and drawn, and that the cache of tokens is asked first."""

from __future__ import annotations

import io
import json
import time
import xml.etree.ElementTree as ElementTree
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from tunewright.config import Settings, embedded_base_path  # noqa: E402
from tunewright.errors import InvalidRequest  # noqa: E402
from tunewright.kinds import data_report  # noqa: E402
from tunewright.kinds.data_report import Asked, report_file  # noqa: E402
from tunewright.kinds.fine_tuning.planning import PlannedFile, machine_described, plan_job  # noqa: E402
from tunewright.plan.options import HyperparameterOptions, TuningOptions  # noqa: E402
from tunewright.registry.bases import BaseInfo, inspect_base  # noqa: E402
from tunewright.rows import lengths  # noqa: E402
from tunewright.rows.cache import TokenCache, file_sha256  # noqa: E402
from tunewright.rows.dataset import RowEncoder, encoded_blocks  # noqa: E402
from tunewright.rows.examples import Example, UnusableRow  # noqa: E402
from tunewright.rows.lengths import Answer, NotMeasured, Question, measure  # noqa: E402
from tunewright.rows.reading import Reading  # noqa: E402
from tunewright.rows.report.flags import Flagger  # noqa: E402
from tunewright.rows.report.lengths import described, histogram  # noqa: E402
from tunewright.rows.report.models import DataReport  # noqa: E402
from tunewright.rows.report.picture import picture  # noqa: E402
from tunewright.rows.report.samples import segments  # noqa: E402
from tunewright.rows.report.survey import Survey, duplicates, survey  # noqa: E402
from tunewright.rows.tokenized import tokenize_file  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(embedded_base_path())


@pytest.fixture(scope="module")
def base() -> BaseInfo:
    return inspect_base(Settings().models.bases[0])


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def text_row(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def surveyed(content: bytes, **options: Any) -> Survey:
    return survey(io.BytesIO(content), Reading(), 60, **options)


CHAT = lines(
    {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]},
    {
        "messages": [
            {"role": role, "content": "d"} for role in ("system", "user", "assistant", "user", "assistant")
        ]
    },
)


# without a model


def test_turns_are_counted_by_row_and_by_role() -> None:
    turns = surveyed(CHAT).turns
    assert turns is not None
    assert (turns.messages, turns.mean, turns.most) == (7, 3.5, 5)
    assert turns.roles == {"user": 3, "assistant": 3, "system": 1}
    assert surveyed(lines(text_row("a", "b"))).turns is None


def test_exact_duplicates_are_named_by_line_whatever_the_order_of_their_fields() -> None:
    content = lines(
        text_row("a", "b"), text_row("a", "B"), {"completion": "b", "prompt": "a"}, text_row("c", "d")
    )
    found = surveyed(content + b"\n" + lines(text_row("c", "d"))).duplicates
    assert (found.copies, found.groups) == (2, [[1, 3], [4, 6]])


@given(st.lists(st.integers(0, 8), max_size=40))
def test_duplicates_are_those_of_a_dictionary(hashes: list[int]) -> None:
    places = list(range(1, len(hashes) + 1))
    found = duplicates(hashes, places)
    assert found.copies == len(hashes) - len(set(hashes))
    groups = [[p for p in places if hashes[p - 1] == one] for one in dict.fromkeys(hashes)]
    assert found.groups == [group[:10] for group in groups if len(group) > 1][:10]


def test_a_survey_ends_when_its_time_is_over_and_says_so() -> None:
    clock = count()
    found = survey(
        io.BytesIO(lines(*[text_row("a", str(n)) for n in range(50)])),
        Reading(),
        5,
        clock=lambda: next(clock),
    )
    assert found.report.rows < 10
    assert not found.is_complete
    assert surveyed(CHAT).is_complete


def test_labels_answers_and_sources_are_counted_and_free_texts_are_not() -> None:
    rows = [
        {
            "instruction": f"Is {n} even?",
            "output": "yes" if n % 10 else "No",
            "source": "web" if n % 40 else "book",
        }
        for n in range(200)
    ]
    rows[3]["source"] = None
    found = surveyed(lines(*rows)).balance
    by = {one.by: {group.name: group.rows for group in one.groups} for one in found}
    assert by == {"answer": {"yes": 180, "no": 20}, "source": {"web": 194, "book": 5, "(none)": 1}}
    assert {one.by: one.ratio for one in found} == {"answer": 9.0, "source": 194.0}
    labelled = [{"prompt": "a", "completion": str(n), "label": n % 4 == 0} for n in range(20)]
    (one,) = surveyed(lines(*labelled)).balance
    assert (one.by, [(group.name, group.rows) for group in one.groups]) == (
        "label",
        [("false", 15), ("true", 5)],
    )
    assert surveyed(lines(*[text_row("a", str(n)) for n in range(200)])).balance == []


def test_a_flagger_marks_rows_by_line() -> None:
    flagger = Flagger(
        "shouting", "Rows that shout.", "Lower them.", lambda row: ["!"] if "!" in row["prompt"] else []
    )
    found = surveyed(
        lines(text_row("a", "b"), *[text_row("a!", str(n)) for n in range(12)]), flaggers=[flagger]
    )
    (flagged,) = found.flagged
    assert (flagged.count, list(flagged.rows)) == (12, list(range(2, 12)))


# lengths


@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 50), min_size=1, max_size=30))
def test_a_histogram_has_every_length_once_in_bins_that_follow_each_other(found: dict[int, int]) -> None:
    bins = histogram(found)
    assert len(bins) <= 20
    assert bins[0].start == 0
    assert all(after.start == before.end + 1 for before, after in pairwise(bins))
    for one in bins:
        assert one.count == sum(number for length, number in found.items() if one.start <= length <= one.end)
    assert sum(one.count for one in bins) == sum(found.values())


def test_a_few_very_long_rows_leave_more_than_one_bar_for_the_others() -> None:
    bins = histogram({**dict.fromkeys(range(100), 10), 10**6: 1})
    assert sum(one.count > 0 for one in bins) > 10
    assert bins[-1].end == 10**6


def test_percentiles_are_lengths_that_occur() -> None:
    found = described({1: 90, 50: 9, 1000: 1}, "tokens")
    assert found is not None
    assert (found.percentiles["50"], found.percentiles["95"], found.percentiles["99"]) == (1, 50, 50)
    assert found.longest == 1000
    assert described({}, "tokens") is None


# with a model


def test_trained_tokens_are_marked_and_what_is_cut_is_left_out(tokenizer: Any) -> None:
    asked, said = (tokenizer(text)["input_ids"] for text in ("one two", " three"))
    example = Example.of(asked, said)
    found = segments(example, tokenizer, 100)
    assert [(one.text, one.trained) for one in found] == [("one two", False), (" three", True)]
    assert [one.trained for one in segments(example, tokenizer, len(asked))] == [False]


def test_of_a_long_text_the_beginning_and_the_end_are_shown(tokenizer: Any) -> None:
    example = Example.of(tokenizer("a " * 5000 + "end")["input_ids"], [1])
    shown = segments(example, tokenizer, 100_000)[0].text
    assert len(shown) < 700
    assert shown.startswith("a a")
    assert shown.endswith("end")


def test_rows_that_cannot_be_encoded_are_counted_by_line_instead_of_ending_the_report(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*[text_row("a", str(n)) for n in range(4)]))
    encoded = RowEncoder.encoded

    def some(self: RowEncoder, row: Any) -> list[Example]:
        if row["completion"] in "13":
            raise UnusableRow("it shows nothing")
        return encoded(self, row)

    monkeypatch.setattr(RowEncoder, "encoded", some)
    (block,) = encoded_blocks(path, tokenizer, 8, refuses=False)
    assert block.faults == {2: "it shows nothing", 4: "it shows nothing"}
    assert (block.rows, len(block.ids)) == (4, 2)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        lines(text_row("a", " b"), text_row("a", " b" * 60), text_row("a b " * 40, " c"), text_row("a", " b"))
    )
    return path


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """What the process would have been asked; it answers with no samples."""
    asked: list[Question] = []

    def answer(question: Question) -> Answer:
        asked.append(question)
        assert not question.counts, "the file is tokenized again"
        return Answer()

    monkeypatch.setattr(lengths, "_answer", answer)
    return asked


def cached(
    rows: Path, tokenizer: Any, base: BaseInfo, folder: Path, max_length: int
) -> tuple[TokenCache, str]:
    """As a job leaves it."""
    cache, source = TokenCache(folder), file_sha256(rows)
    question = Question(base=base.path, file=rows, source=source, max_length=max_length)
    tokenize_file(rows, tokenizer, max_length, cache=cache, key=question.key(), source=source).close()
    return cache, source


def test_a_plan_and_a_report_take_the_tokens_of_a_job_that_was_there_before(
    rows: Path, tokenizer: Any, base: BaseInfo, tmp_path: Path, no_process: list[Question]
) -> None:
    cache, source = cached(rows, tokenizer, base, tmp_path / "cache", 1024)
    plan = plan_job(
        base, [PlannedFile(rows, rows.name, sha256=source)], machine_described("L4"), tuning=TuningOptions(),
        hyperparameters=HyperparameterOptions(), max_rank=64, cache=cache,
    )  # fmt: skip
    assert no_process == []
    report = report_file(Asked(rows, source=source, base=base), cache)
    assert report.tokens is not None
    assert report.tokens.from_cache
    assert report.tokens.tokens == plan.tokens
    assert len(no_process) == 1, "for the samples"


def test_a_report_says_what_is_cut_by_line_and_how_many_trained_tokens_that_loses(
    rows: Path, tokenizer: Any, base: BaseInfo, tmp_path: Path, no_process: list[Question]
) -> None:
    cache, source = cached(rows, tokenizer, base, tmp_path / "cache", 32)
    report = report_file(Asked(rows, source=source, base=base, max_length=32), cache)
    tokens = report.tokens
    assert tokens is not None
    assert (tokens.rows, tokens.examples, tokens.cut, tokens.left_out) == (4, 3, 2, 1)
    assert tokens.lengths is not None
    long = ("a" + " b" * 60, "a b " * 40 + " c")
    assert tokens.lengths.longest == max(len(tokenizer(text)["input_ids"]) + 1 for text in long)
    assert tokens.lost_trained > 30
    problems = {one.code: one for one in report.problems}
    assert set(problems) == {"cut_rows", "nothing_to_learn", "duplicate_rows"}
    assert [row.line for row in problems["cut_rows"].rows] == [2, 3]
    assert f"trained tokens lost by it: {tokens.lost_trained}" in problems["cut_rows"].message
    assert "up to 1024" in problems["cut_rows"].fix
    assert problems["duplicate_rows"].rows[0].message == "the same as line 1"


def test_what_is_wrong_with_a_base_is_told_before_and_after_the_process(
    rows: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (4, 1025):
        with pytest.raises(InvalidRequest, match="8 to 1024") as told:
            report_file(Asked(rows, base=base, max_length=length))
        assert told.value.param == "max_length"
    with pytest.raises(InvalidRequest, match="give model too") as told:
        report_file(Asked(rows, max_length=64))
    assert told.value.param == "max_length"

    def failed(*_: Any) -> None:
        raise NotMeasured("its tokenizer cannot be loaded: no", "model")

    monkeypatch.setattr(data_report, "measure", failed)
    with pytest.raises(InvalidRequest, match="tunewright-tiny cannot be reported on: its tokenizer") as told:
        report_file(Asked(rows, base=base))
    assert told.value.param == "model"


def test_the_process_tells_that_a_base_has_no_tokenizer(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotMeasured, match="tokenizer cannot be loaded") as told:
        measure(Question(base=tmp_path, file=rows, max_length=64))
    assert told.value.param == "model"


def test_a_process_that_hangs_is_ended(rows: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_GRACE_SECONDS", 0.0)
    begin = time.monotonic()
    with pytest.raises(NotMeasured, match="took more than"):
        measure(Question(base=base.path, file=rows, max_length=64, seconds=0.3))
    assert time.monotonic() - begin < 5


# the picture


def report_of(content: bytes, tmp_path: Path) -> DataReport:
    path = tmp_path / "rows"
    path.write_bytes(content)
    return report_file(Asked(path))


@pytest.mark.parametrize("name", ["<script>&\"'.jsonl", "a\x00b\ud800c", "x" * 1000])
def test_a_picture_is_well_formed_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    drawn = picture(report_of(CHAT, tmp_path), name)
    root = ElementTree.fromstring(drawn.encode())
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "text", "line"}
    assert "prefers-color-scheme:dark" in drawn
    assert len(drawn) < 20_000


def test_a_picture_of_nothing_says_so(tmp_path: Path) -> None:
    drawn = picture(report_of(b"%PDF-1.7", tmp_path), "a.pdf")
    assert "No row could be read" in drawn
    ElementTree.fromstring(drawn)


def test_a_picture_shows_where_examples_are_cut(
    rows: Path, tokenizer: Any, base: BaseInfo, tmp_path: Path, no_process: list[Question]
) -> None:
    cache, source = cached(rows, tokenizer, base, tmp_path / "cache", 32)
    drawn = picture(report_file(Asked(rows, source=source, base=base, max_length=32), cache), "rows.jsonl")
    assert "2 cut at 32" in drawn
    assert "tokens of tunewright-tiny" in drawn
