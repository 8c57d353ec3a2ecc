"""One training run: from the spec to `result.json`."""

from __future__ import annotations

import faulthandler
import logging
import socket

import transformers

from tunewright.jobs.failure import explain
from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder
from tunewright.jobs.process import leave, rank
from tunewright.logs import limit_records
from tunewright.trainer import ranks
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.methods import dpo, kto, orpo, reward, supervised
from tunewright.trainer.spec import TrainingResult, TrainingSpec
from tunewright.trainer.training import MakeTrainer, Parts, train

log = logging.getLogger("tunewright.trainer")


def _graded(parts: Parts) -> OrderedRows:
    from tunewright.trainer.methods import (
        grpo,  # imports vLLM by way of TRL: 4 s and 180 MB, for this method alone
    )

    return grpo.make_trainer(parts)


METHODS: dict[str, MakeTrainer] = {
    "supervised": supervised.make_trainer,
    "dpo": dpo.make_trainer,
    "kto": kto.make_trainer,
    "orpo": orpo.make_trainer,
    "reward": reward.make_trainer,
    "reinforcement": _graded,
}
"""What makes the trainer, by OpenAI's method."""


def run_job(folder: JobFolder, spec: TrainingSpec, rendezvous: socket.socket | None = None) -> int:
    """Train, and write `result.json`; returns the exit code. `rendezvous`: where this process is a rank of several
    (`jobs.ranks`)."""
    faulthandler.enable()  # SIGABRT, sent to a trainer that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    transformers.logging.set_verbosity_info()
    transformers.logging.disable_progress_bar()
    try:
        if rendezvous is not None:
            ranks.join(rendezvous, on_gpu=spec.device != "cpu")
        result = train(folder, spec, EventLog(folder, rank()), METHODS[spec.method])
    except Exception as error:
        failure = explain(error, folder.path)
        if failure is None:
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        result = TrainingResult(status="failed", error_code=failure.code, error_message=str(failure))
    if result is None:
        return STOPPED_RESUMABLE
    return leave(folder, result)
