"""The origins of files that jobs have made, as frozen records: the column `lineage` of the table of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileLineage:
    """The origin of a file that was made by a cleaning. It stays true when the cleaning and its source are gone."""

    cleaning: str
    """Id of the job."""
    file: str
    """Id of the file that was cleaned."""
    filename: str
    sha256: str
    steps: list[dict[str, Any]]
    """The steps with all of their options, as the cleaning has them."""
    rows_before: int
    rows_after: int


@dataclass(frozen=True)
class SynthesisLineage:
    """The origin of a file that was made by a synthesis. It stays true when the synthesis, its source and its teacher
    are gone."""

    synthesis: str
    """Id of the job."""
    file: str
    """Id of the source."""
    filename: str
    sha256: str
    task: dict[str, Any]
    """The task with its options, as the synthesis has it."""
    teacher: str
    """Its name."""
    teacher_content: str
    """The hash of its weights, or the fingerprint of a base."""
    prompts_version: int
    """The version of the texts by which it was asked."""
    seed: int
    rows_before: int
    rows_after: int
