"""The items of prompts whose answers are graded: the rows of the files, in the order of their tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.faults import InvalidData
from tunewright.rows.formats import read_rows
from tunewright.rows.reading import Reading
from tunewright.trainer.spec import TrainingSpec


def training_items(spec: TrainingSpec) -> list[str]:
    """As JSON, of the examples that are trained on. Raises TrainingFailed."""
    return _items([spec.training_file, *(one.file for one in spec.further_files)], spec.reading)


def held_out_items(spec: TrainingSpec) -> list[str]:
    """As JSON, of the examples that are held out. Raises TrainingFailed."""
    assert spec.validation_file is not None, "rows are held out"
    reading = spec.validation_reading
    further = [one.file for one in spec.further_files] if reading.part == "held_out" else []
    return _items([spec.validation_file, *further], reading)


def _items(files: list[str], reading: Reading) -> list[str]:
    try:
        return [json.dumps(row["item"]) for file in files for _, row in read_rows(Path(file), reading)]
    except (OSError, InvalidData, RecursionError) as error:  # it was checked, and has changed
        raise TrainingFailed("invalid_training_file", f"the items cannot be read: {error}") from error
