"""Predicted time and memory of training, held to what it takes: after one job of a kind, for a second one.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.predicted_time [--model FOLDER ...] [--rows FILE] [--clock processor]

For each kind (a model, and full, LoRA or QLoRA; dpo beside them on the embedded base) a first job trains on some rows.
The prediction for a second job, on other and more rows, is made from what the first has measured, as the service
makes it, and written down before the second job runs. Rows are those of GSM8K (`{"question", "answer"}`), or of the
embedded demo; pairs are made of two of these.

`--clock processor` counts the processor time of the trainer in place of the clock's: for machines that do other
work at the same time, where the clock says little.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.memory_grid import in_a_fork

from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.plan.data_shape import data_shape
from tunewright.plan.defaults import resolve
from tunewright.plan.fitting import run_of
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.time import Earlier
from tunewright.trainer import loop
from tunewright.trainer.methods import dpo, kto
from tunewright.trainer.run import run_job
from tunewright.trainer.spec import TrainingResult, TrainingSpec

FIRST, SECOND = 96, 224
"""Rows of the two jobs."""
BATCH, LENGTH = 16, 256


@dataclass(frozen=True)
class Kind:
    base: Path
    type: str
    method: str = "supervised"

    def describe(self) -> str:
        name = "embedded base" if self.base == embedded_base_path() else self.base.name
        return f"{name}, {self.type}" + ("" if self.method == "supervised" else f", {self.method}")


def texts(file: Path | None) -> list[tuple[str, str]]:
    """(prompt, completion)"""
    file = file or embedded_base_path().parent / "demo" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if "question" in rows[0]:
        return [(row["question"] + "\n", row["answer"]) for row in rows]
    return [(row["messages"][0]["content"] + "\n", row["messages"][-1]["content"]) for row in rows]


def trained(
    folder: Path, kind: Kind, rows: list[tuple[str, str]], clock: str, earlier: tuple[Earlier, ...]
) -> TrainingResult:
    """Run the trainer on these rows, in a fork of this process, as the service does."""
    folder.mkdir()
    with (folder / "rows.jsonl").open("w") as file:
        for number, (prompt, completion) in enumerate(rows):
            row = {"prompt": prompt, "completion": completion}
            if kind.method == "dpo":
                row = {"prompt": prompt, "chosen": completion, "rejected": rows[number - 1][1]}
            file.write(json.dumps(row) + "\n")
    JobFolder(folder).write_spec(
        TrainingSpec(
            job_id=folder.name,
            base_name="base",
            base_path=str(kind.base),
            training_file=str(folder / "rows.jsonl"),
            seed=1,
            device="cpu",
            method=kind.method,
            tuning=resolve(
                tuning=TuningOptions(type=kind.type, batch_size=BATCH, max_length=LENGTH, n_epochs=1),
                hyperparameters=HyperparameterOptions(),
                rows=len(rows),
                context=LENGTH,
                max_rank=64,
                device="cpu",
                method=kind.method,
            ),
            earlier=earlier,
        )
    )
    in_a_fork(run_one, folder, clock)
    result = JobFolder(folder).read_result(TrainingResult)
    assert result is not None
    assert result.status == "succeeded", result.error_message
    return result


def run_one(folder: Path, clock: str) -> None:
    """Of the process of a job."""
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if clock == "processor":
        for module in (loop, dpo, kto):
            module.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    jobs = JobFolder(folder)
    assert run_job(jobs, jobs.read_spec(TrainingSpec)) == 0


def as_earlier(folder: Path, result: TrainingResult) -> Earlier:
    """As the service makes it of a finished job."""
    assert result.measured is not None
    tuning = JobFolder(folder).read_spec(TrainingSpec).tuning
    length = result.measured.length
    return Earlier(folder.name, run_of(tuning, data_shape(1, [(length, length)]), "cpu"), result.measured)


def measure(kind: Kind, file: Path | None, clock: str) -> dict[str, Any]:
    rows = texts(file)
    with tempfile.TemporaryDirectory() as at:
        first = trained(Path(at) / "first", kind, rows[:FIRST], clock, ())
        known = as_earlier(Path(at) / "first", first)
        second = trained(Path(at) / "second", kind, rows[FIRST : FIRST + SECOND], clock, (known,))
    planned, measured = second.planned, second.measured
    assert planned is not None
    assert planned.seconds is not None
    assert measured is not None
    assert measured.steps is not None
    # The first step is not measured; it is a share of the predicted ones.
    took = measured.seconds * planned.tokens / measured.tokens + (measured.reference_seconds or 0.0)
    middle = (planned.seconds.least + planned.seconds.most) / 2
    return {
        "kind": kind.describe(),
        "predicted": middle,
        "took": took,
        "error": middle / took - 1,
        "within": planned.seconds.least <= took <= planned.seconds.most,
        "basis": planned.seconds.basis,
        "predicted_peak": planned.peak_bytes / 2**20,
        "peak": measured.peak_bytes / 2**20,
        "peak_error": planned.peak_bytes / measured.peak_bytes - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, action="append", default=[], help="further bases")
    parser.add_argument("--rows", type=Path, help="GSM8K's train.jsonl, in place of the demo's rows")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help='kinds with this in their name, such as "lora"'
    )
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    asked = parser.parse_args()
    kinds = [
        Kind(base, type)
        for base in (embedded_base_path(), *asked.model)
        for type in ("full", "lora", "qlora")
    ]
    kinds += [Kind(embedded_base_path(), type, "dpo") for type in ("full", "lora")]
    print(
        "| kind | predicted s | took s | error | predicted MiB | peak MiB | error |\n|---|---|---|---|---|---|---|"
    )
    for kind in (one for one in kinds if asked.only in one.describe()):
        found = measure(kind, asked.rows, asked.clock)
        outside = "" if found["within"] else ", outside of the range"
        print(
            f"| {found['kind']} | {found['predicted']:.1f} | {found['took']:.1f} | {found['error']:+.1%}{outside} | "
            f"{found['predicted_peak']:.0f} | {found['peak']:.0f} | {found['peak_error']:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
