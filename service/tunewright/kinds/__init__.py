"""The kinds of jobs, one folder for each. Each kind is registered here, which makes it known to the store
(`jobs.kinds`) too."""

from __future__ import annotations

from tunewright.jobs.kinds import kind_named, register
from tunewright.kinds.batch.kind import Batch
from tunewright.kinds.cleaning.kind import Cleaning
from tunewright.kinds.evaluation.kind import Evaluation
from tunewright.kinds.export.kind import Export
from tunewright.kinds.fine_tuning.kind import FineTuning
from tunewright.kinds.kind import Kind
from tunewright.kinds.synthesis.kind import Synthesis

FINE_TUNING = FineTuning()
EXPORT = Export()
CLEANING = Cleaning()
EVALUATION = Evaluation()
BATCH = Batch()
SYNTHESIS = Synthesis()

for _kind in (FINE_TUNING, EXPORT, CLEANING, EVALUATION, BATCH, SYNTHESIS):
    register(_kind)


def kind_of(name: str) -> Kind:
    """The kind of this name. Raises LookupError where no such kind is registered."""
    kind = kind_named(name)
    assert isinstance(kind, Kind), f"the registered kind {name} is no Kind"
    return kind
