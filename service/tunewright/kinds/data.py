"""Checks the data files of jobs."""

from __future__ import annotations

from pathlib import Path

from tunewright.kinds.kind import JobRefused
from tunewright.rows.formats import DataFormat, FileSummary, InvalidData, check_file


def check_data(path: Path, param: str, chat_template: str | None, base: str) -> FileSummary:
    """Check a file whose chat rows will be rendered with `chat_template`. Raises JobRefused."""
    try:
        summary = check_file(path)
    except InvalidData as error:
        raise JobRefused(f"invalid_{param}", str(error), param) from error
    if summary.format is DataFormat.CHAT and not chat_template:
        raise JobRefused(
            f"invalid_{param}",
            f"base {base} has no chat template, so it cannot train on chat data: give the job a `chat_template`, or "
            "use prompt/completion rows",
            param,
        )
    return summary
