"""The rows of a job that checks and exports of its models look at: of all its files, in their shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tunewright.kinds.data import DataOptions
from tunewright.kinds.export.models import ExportRequest
from tunewright.kinds.fine_tuning.models import TRAINING_FILE, VALIDATION_FILE, FineTuningRequest
from tunewright.registry.workspace import Workspace
from tunewright.rows.reading import Reading
from tunewright.rows.sources import Source
from tunewright.store.records import Job, Lineage


@dataclass(frozen=True)
class RowsOfJob:
    """Files by their ids, each with its share in the rows, and how they are read."""

    training: Mapping[str, float] = field(default_factory=dict)
    """What was trained on."""
    held_out: Mapping[str, float] = field(default_factory=dict)
    """What was held out; empty where nothing was."""
    data: DataOptions = field(default_factory=DataOptions)


def rows_of_job(job: Job, lineage: Lineage | None) -> RowsOfJob:
    """The rows of the job that made a model with this lineage, which has the examples of each of several files. In
    models of earlier versions it has not: their files count as if they were of one size."""
    request = job.request
    if isinstance(request, ExportRequest):
        held_out = shares_of(job.files(VALIDATION_FILE), request.validation_shares)
        return RowsOfJob({}, held_out, request.validation_data)
    first = job.file(TRAINING_FILE)
    if not isinstance(request, FineTuningRequest) or first is None:
        return RowsOfJob()
    weights = request.data.weights(first)
    mix = (lineage.mix if lineage else None) or ()
    examples = {one["file"]: float(one["examples"]) for one in mix if one.get("examples")}
    training = examples if examples.keys() == weights.keys() else weights
    if request.data.validation_share:  # what is held out is measured once, whatever the file's weight
        held_out = {id: training[id] / weights[id] for id in weights}
        return RowsOfJob(training, held_out, request.data)
    return RowsOfJob(training, shares_of(job.files(VALIDATION_FILE), {}), request.data)


def shares_of(files: list[str], known: Mapping[str, float]) -> dict[str, float]:
    return {id: known.get(id, 1.0) for id in files}


def sources_of(
    shares: Mapping[str, float], workspace: Workspace, reading: Reading, listed: Callable[[str], object]
) -> tuple[Source, ...]:
    """Those of the files that still exist: on this machine, or, where files are in a bucket too, that are `listed`."""
    return tuple(
        Source(file=str(path), reading=reading, share=share)
        for id, share in shares.items()
        if (path := workspace.file(id)).is_file() or (workspace.remote_files is not None and listed(id))
    )
