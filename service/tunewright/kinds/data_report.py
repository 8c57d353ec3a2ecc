"""Makes the report of a data file: reads its rows, and where a model is given measures it in the model's tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.errors import InvalidRequest, cut
from tunewright.kinds.data import DataOptions
from tunewright.plan.defaults import MAX_LENGTH
from tunewright.registry.bases import BaseInfo
from tunewright.rows.cache import TokenCache
from tunewright.rows.faults import listed
from tunewright.rows.formats import FileReport
from tunewright.rows.lengths import Measured, NotMeasured, Question, measure
from tunewright.rows.reading import Reading
from tunewright.rows.report.lengths import described
from tunewright.rows.report.models import Balance, DataReport, Duplicates, Problem, RowNote, Tokens
from tunewright.rows.report.pairs import Pairs
from tunewright.rows.report.survey import Survey, survey

SHORTEST = 8
"""Tokens of the smallest maximum length that a job takes."""
_SAMPLES = 3
_MESSAGE = 500
"""Characters of what is said of a row."""
_NAMES, _NAME = 50, 100
_UNEVEN = 10.0
"""Times the rows of the smallest group that the largest has, from which on it is told."""
"""Ignored fields that are named, and characters of each."""


@dataclass(frozen=True)
class Asked:
    """What a report is made of."""

    file: Path
    source: str = ""
    """Its sha256; where there is none, nothing is looked up in the cache of tokens."""
    base: BaseInfo | None = None
    data: DataOptions = field(default_factory=DataOptions)
    chat_template: str | None = None
    max_length: int | None = None
    """None: that of a job by default."""
    trust_remote_code: bool = False
    seconds: int = 60
    """In which the rows are read, and as many in which they are tokenized; later rows are not reported on."""

    def reading(self) -> Reading:
        template = self.chat_template or (self.base.chat_template if self.base else None)
        return self.data.reading(self.base is None or bool(template))


def report_file(asked: Asked, cache: TokenCache | None = None) -> DataReport:
    """The report of a file, made in processes with limits. Raises InvalidRequest for what was asked, OSError for the
    file, and EngineUnavailable where no process could be started."""
    length = _max_length(asked)
    found = _surveyed(asked)
    report = found.report
    measured = None
    if asked.base is not None and report.problem is None:
        measured = _measured(asked, asked.base, report, length, cache)
    notes = _Notes(report)
    return DataReport(
        container=report.container,
        format=report.format,
        kind=report.kind,
        rows=report.rows,
        is_complete=found.is_complete,
        ignored_fields=[cut(name, _NAME) for name in list(report.ignored)[:_NAMES]],
        turns=found.turns,
        pairs=found.pairs.described() if found.pairs else None,
        characters=described(found.characters, "characters"),
        duplicates=found.duplicates,
        balance=found.balance,
        tokens=_tokens(asked.base.name, length, measured) if asked.base and measured else None,
        samples=measured.samples if measured else [],
        problems=[
            *notes.of_the_file(),
            *(notes.of_tokens(measured, length, asked.base.context) if asked.base and measured else []),
            *notes.of_pairs(found.pairs),
            *notes.of_duplicates(found.duplicates),
            *notes.of_balance(found.balance),
        ],
        flags=[
            notes.problem(one.code, "warning", one.message, one.fix, one.rows, one.count)
            for one in found.flagged
        ],
    )  # fmt: skip


def _max_length(asked: Asked) -> int:
    if asked.base is None:
        if asked.max_length is not None:
            raise InvalidRequest(
                "max_length is in tokens of a model: give model too, or leave it out.", param="max_length"
            )
        return 0
    context = asked.base.context
    length = min(MAX_LENGTH, context) if asked.max_length is None else asked.max_length
    if not SHORTEST <= length <= context:
        raise InvalidRequest(
            f"max_length is from {SHORTEST} to {context}, the context of {asked.base.name}; got {length}.",
            param="max_length",
        )
    return length


def _surveyed(asked: Asked) -> Survey:
    with asked.file.open("rb") as file:
        try:
            return call_apart(survey, [file], asked.reading(), asked.seconds, seconds=2 * asked.seconds)
        except OutOfMemory:
            refusal = "a part of the file takes too much memory to read: make its rows shorter"
        except CutOff:
            refusal = "reading the file takes too long, or ended the process that read it: it is damaged"
    return Survey(FileReport(refusal=refusal), False, None, {}, Duplicates(copies=0, groups=[]), [])


def _measured(
    asked: Asked, base: BaseInfo, report: FileReport, length: int, cache: TokenCache | None
) -> Measured:
    if report.has_messages and not (asked.chat_template or base.chat_template):
        raise InvalidRequest(
            f"{base.name} has no chat template, and the file has chat rows: name a model that has one, or give the "
            "job a chat_template.",
            param="model",
            code="no_chat_template",
        )
    question = Question(
        base=base.path,
        file=asked.file,
        source=asked.source,
        reading=asked.reading(),
        chat_template=asked.chat_template,
        max_length=length,
        trust_remote_code=asked.trust_remote_code,
        seconds=asked.seconds,
        samples=_SAMPLES,
        unit=_unit(report),
    )
    try:
        return measure(question, cache)
    except NotMeasured as error:
        what = base.name if error.param == "model" else "The file"
        param = "model" if error.param == "model" else "file_id"
        raise InvalidRequest(f"{what} cannot be reported on: {error}.", param=param) from error


def _unit(report: FileReport) -> Literal["line", "row"]:
    """What counts the places of a file."""
    container = (report.container or "").removesuffix(".gz")
    return "row" if container in ("json", "parquet") else "line"


def _tokens(model: str, max_length: int, measured: Measured) -> Tokens:
    totals = measured.totals
    return Tokens(
        model=model,
        max_length=max_length,
        rows=totals.rows,
        is_complete=measured.is_complete,
        from_cache=measured.from_cache,
        examples=totals.examples,
        tokens=totals.tokens,
        trained=totals.learnt,
        cut=totals.truncated,
        left_out=totals.dropped,
        lost_trained=totals.lost,
        lengths=described(totals.whole_lengths, "tokens"),
    )


class _Notes:
    """Writes the problems of a file."""

    def __init__(self, report: FileReport) -> None:
        self._report = report
        self._unit = _unit(report)

    def problem(
        self,
        code: str,
        severity: Literal["error", "warning"],
        message: str,
        fix: str,
        rows: dict[int, str],
        count: int,
    ) -> Problem:
        return Problem(
            code=code,
            severity=severity,
            message=message,
            fix=fix,
            count=count,
            rows=[self._note(place, text) for place, text in rows.items()],
        )

    def _note(self, place: int, text: str) -> RowNote:
        shown = cut(text, _MESSAGE)
        return (
            RowNote(line=place, message=shown) if self._unit == "line" else RowNote(row=place, message=shown)
        )

    def of_the_file(self) -> Iterable[Problem]:
        report = self._report
        if report.refusal is not None:
            yield self.problem(
                "unreadable_file", "error", report.refusal, "Convert the file, and upload it again.", {}, 0
            )
        if report.faults:
            more = " or more" if report.has_more_faults else ""
            yield self.problem(
                "invalid_rows", "error", f"Rows that are not valid: {len(report.faults)}{more}.",
                "Correct or remove these rows, or name the columns of the file in data.columns where they have other "
                "names: a job on the file is refused.",
                {fault.place: fault.message for fault in report.faults}, len(report.faults),
            )  # fmt: skip
        if report.ignored:
            yield self.problem(
                "ignored_fields", "warning",
                f"Fields without a meaning are left out: {listed(report.ignored)}.",
                "Nothing, if they are ids or sources. If they should be learnt, name them in data.columns.",
                {}, max(report.ignored.values()),
            )  # fmt: skip

    def of_tokens(self, measured: Measured, max_length: int, context: int) -> Iterable[Problem]:
        totals = measured.totals
        if measured.faulty:
            yield self.problem(
                "unrenderable_rows", "error",
                f"Rows that cannot be rendered as the model would be asked: {measured.faulty}.",
                "Change these rows, or give the job a chat_template that renders them.",
                measured.faults, measured.faulty,
            )  # fmt: skip
        shorten = "Shorten or split these rows"
        if max_length < context:
            shorten += f", or raise max_length (tuning.max_length of the job), up to {context}"
        if totals.truncated:
            yield self.problem(
                "cut_rows", "warning",
                f"Examples that are longer than {max_length} tokens and are cut there: {totals.truncated}; trained "
                f"tokens lost by it: {totals.lost}.",
                shorten + ".",
                {place: f"{tokens} tokens" for place, tokens in totals.too_long.items()}, totals.truncated,
            )  # fmt: skip
        if totals.dropped:
            severity: Literal["error", "warning"] = "warning" if totals.examples else "error"
            same = f" (in {totals.identical} both answers are the same)" if totals.identical else ""
            yield self.problem(
                "nothing_to_learn", severity,
                f"Examples with nothing to learn in {max_length} tokens, which are left out: {totals.dropped}{same}.",
                shorten + ".", {}, totals.dropped,
            )  # fmt: skip

    def of_pairs(self, pairs: Pairs | None) -> Iterable[Problem]:
        if pairs is None or not pairs.identical:
            return
        yield self.problem(
            "identical_pairs", "warning",
            f"Pairs whose two answers are the same, which teach nothing and are left out: {pairs.identical}.",
            "Remove them, or correct the answer that should differ.",
            dict.fromkeys(pairs.first_identical, "both answers are the same"), pairs.identical,
        )  # fmt: skip

    def of_balance(self, balance: list[Balance]) -> Iterable[Problem]:
        for one in balance:
            if one.ratio < _UNEVEN:
                continue
            largest = one.groups[0]
            yield self.problem(
                "imbalanced_rows", "warning",
                f"By {one.by}, the largest group ({cut(largest.name, _NAME)}: {largest.rows} rows) has {one.ratio:g} "
                "times the rows of the smallest.",
                "Give more rows of the small groups, or sample the large ones down: tunewright data clean FILE -o OUT "
                f"--step balance:by={one.by},ratio={_UNEVEN:g}. Leave it, if the model will be asked as unevenly.",
                {}, largest.rows,
            )  # fmt: skip

    def of_duplicates(self, duplicates: Duplicates) -> Iterable[Problem]:
        if not duplicates.copies:
            return
        copies = {
            place: f"the same as {self._unit} {group[0]}"
            for group in duplicates.groups
            for place in group[1:]
        }
        yield self.problem(
            "duplicate_rows", "warning", f"Rows that are copies of earlier ones: {duplicates.copies}.",
            "Remove the copies, unless they should count as often as they occur.",
            dict(list(copies.items())[:10]), duplicates.copies,
        )  # fmt: skip
