"""Checks the data files of jobs, in processes with limits: the files come from users."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.kinds.kind import JobRefused
from tunewright.rows.canonical import RowKind
from tunewright.rows.formats import FileReport, inspect
from tunewright.rows.reading import Reading

_SECONDS, _BYTES_PER_SECOND = 60, 2**19
"""Processor time of a check, and beside it a second for so many bytes: rows take a second for some 15 MiB, and a
compressed file is many times its size."""
_METHODS = {
    RowKind.CHAT: ("supervised",),
    RowKind.PROMPT_COMPLETION: ("supervised",),
    RowKind.PREFERENCE: ("dpo", "orpo", "reward"),
    RowKind.LABELLED: ("kto",),
    RowKind.GRADED: ("reinforcement",),
    RowKind.TEXT: ("supervised",),
}
"""The methods that learn from each kind of rows."""


class MixedFile(BaseModel):
    """A training file and how often an epoch has its rows (`plan.mixing`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: str
    """Its id; its path in plans without a service."""
    weight: float = 1.0


class DataOptions(BaseModel):
    """How a job's files are read: `data` of its request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    columns: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    alpaca: Literal["auto", "chat", "template"] = "auto"
    """auto: chat where the base has a chat template, or the job brings one."""
    validation_share: float | None = None
    """The share of the training file that is held out for validation; None: a file of its own, or nothing."""
    mix: tuple[MixedFile, ...] | None = None
    """Further training files, with weights; the training file may be among them, for its weight."""

    def weights(self, training_file: str) -> dict[str, float]:
        """The weight of each training file by its id, that of `training_file` first."""
        return {training_file: 1.0} | {one.file: one.weight for one in self.mix or ()}

    def reading(self, has_template: bool, part: Literal["all", "training", "held_out"] = "all") -> Reading:
        alpaca = ("chat" if has_template else "template") if self.alpaca == "auto" else self.alpaca
        share = self.validation_share or 0.0
        return Reading(
            columns=self.columns,
            tags=self.tags,
            alpaca=alpaca,
            part=part if share else "all",
            held_out_share=share,
        )


def inspect_apart(file: BinaryIO, reading: Reading, most_rows: int | None = None) -> FileReport:
    """`rows.formats.inspect` in a process of its own. Raises EngineUnavailable where none could be started."""
    seconds = _SECONDS + Path(f"/proc/self/fd/{file.fileno()}").stat().st_size // _BYTES_PER_SECOND
    try:
        return call_apart(inspect, [file], reading, most_rows, seconds=seconds)
    except OutOfMemory:
        return FileReport(refusal="a part of the file takes too much memory to read: make its rows shorter")
    except CutOff:
        return FileReport(
            refusal=f"reading the file took more than {seconds} s of processor time, or ended the process that read "
            "it: it is damaged, or made to take long"
        )


def why_unusable(format: str, kind: str, method: str | None = "supervised") -> str | None:
    """Why a method cannot learn from rows of this kind; None where it can, and without a method: they
    are measured on."""
    known = _METHODS[RowKind(kind)]
    if method is None or method in known:
        return None
    usable = " or ".join(one.value for one, by in _METHODS.items() if method in by)
    could = " or ".join((", ".join(known[:-1]), known[-1])) if len(known) > 1 else known[0]
    return (
        f"the file has {kind} rows (format {format}), which the method {method} cannot learn from; "
        f"{could} could. {method} needs {usable} rows: where the file has columns for them, name those in "
        "data.columns"
    )


def check_data(
    path: Path,
    param: str,
    chat_template: str | None,
    base: str,
    data: DataOptions | None = None,
    method: str | None = "supervised",
) -> FileReport:
    """Check a file whose chat rows will be rendered with `chat_template`, for a method, or to be measured on. Raises
    JobRefused."""
    reading = (data or DataOptions()).reading(bool(chat_template))
    code = f"invalid_{param}"
    try:
        with path.open("rb") as file:
            report = inspect_apart(file, reading)
    except OSError as error:
        raise JobRefused(code, f"the file cannot be read: {error.strerror}", param) from error
    if report.problem is not None:
        raise JobRefused(code, report.problem, param)
    assert report.format is not None and report.kind is not None, "it has rows"
    if why := why_unusable(report.format, report.kind, method):
        raise JobRefused(code, why, param)
    if report.has_messages and not chat_template:
        raise JobRefused(
            code,
            f"base {base} has no chat template, so it cannot train on chat data: give the job a `chat_template`, or "
            "use rows of texts, such as prompt/completion",
            param,
        )
    return report


def describe(report: FileReport) -> str:
    """The rows of a file without faults, in a few words."""
    text = f"{report.rows} rows, {report.format}"
    if report.kind is not None and report.kind.value != report.format:
        text += f" read as {report.kind}"
    if report.held_out:
        text += f", {report.held_out} of them held out"
    if report.ignored:
        text += f"; without a meaning there, and left out: {', '.join(list(report.ignored)[:5])}"
    return text


def check_held_out(report: FileReport, share: float) -> None:
    """Raises JobRefused where one of the parts is empty."""
    if report.held_out == report.rows:
        raise JobRefused(
            "invalid_training_file",
            f"of the {report.rows} rows all would be held out, and none is left to train on: lower "
            "data.validation_share, or give a validation file (rows of the same content are held out together)",
            "validation_file",
        )
    if not report.held_out:
        raise JobRefused(
            "invalid_validation_file",
            f"the share {share:g} of {report.rows} rows holds out none: give a validation file, or a "
            f"data.validation_share above {report.nearest_place:.4f}",
            "validation_file",
        )
