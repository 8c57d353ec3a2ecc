"""How a training run ends without a product."""

from __future__ import annotations


class TrainingFailed(Exception):
    """The job cannot succeed: `code` and the message become the job's error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TrainingStopped(Exception):
    """Asked to stop; a checkpoint is saved and a later run goes on from it."""
