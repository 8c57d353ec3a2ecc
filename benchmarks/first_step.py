"""What a trainer needs until its first step on a large file: seconds, rows per second, and memory.

    python -m benchmarks.first_step [--rows 200000] [--starts 2]

Makes a file of chat rows and runs the trainer on it, on the CPU with the embedded base, until it has told its first
step; then it is killed and started again, on the same job folder. For each start: seconds to the first step, of the
clock and of all processors; the peak of the resident memory of the trainer itself and of all its processes together
(VmHWM, which counts what they share in each of them); and the peak of their proportional memory (Pss), which counts
what they share once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.trainer.spec import TrainingSpec

MIB = 2**20


class Usage:
    """The peaks of a process and those that it starts, in bytes, and the time that they used."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peaks: dict[int, int] = {}
        self._seconds: dict[int, float] = {}
        self.proportional = 0

    def look(self) -> None:
        together = 0
        with suppress(psutil.NoSuchProcess):
            for process in (self._process, *self._process.children(recursive=True)):
                with suppress(FileNotFoundError, ProcessLookupError):
                    peak = _field(Path(f"/proc/{process.pid}/status"), "VmHWM:")
                    self._peaks[process.pid] = max(peak, self._peaks.get(process.pid, 0))
                    times = process.cpu_times()
                    self._seconds[process.pid] = times.user + times.system
                    together += _field(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss:")
        self.proportional = max(self.proportional, together)

    @property
    def processor_seconds(self) -> float:
        return sum(self._seconds.values())

    @property
    def trainer(self) -> int:
        return self._peaks[self._process.pid]

    @property
    def everything(self) -> int:
        return sum(self._peaks.values())


def _field(path: Path, name: str) -> int:
    """A field of a file of /proc, in bytes; 0 where the process has ended."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == name), 0)


def write_rows(path: Path, rows: int) -> None:
    """Chat rows of about 100 tokens, all different."""
    with path.open("w") as file:
        for number in range(rows):
            question = f"What is the weather like in the city number {number} today, and what should I wear?"
            answer = f"In the city number {number} it is sunny and warm today: a shirt is all that you need."
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def job_folder(path: Path, data: Path, rows: int) -> JobFolder:
    folder = JobFolder(path)
    tuning = {"type": "lora", "n_epochs": 1, "batch_size": 8}
    folder.write_spec(
        TrainingSpec(
            job_id="ftjob-benchmark", base_name="tiny", base_path=str(embedded_base_path()),
            training_file=str(data), seed=1, device="cpu",
            tuning=resolve(
                tuning=TuningOptions(**tuning), hyperparameters=HyperparameterOptions(), rows=rows, context=1024,
                max_rank=64, device="cpu",
            ),
        )
    )  # fmt: skip
    return folder


def until_first_step(folder: JobFolder) -> tuple[float, Usage]:
    """Start the trainer; kill it when it has told a step. Returns the seconds, and the memory until then."""
    told = folder.events_size()
    began = time.monotonic()
    with folder.log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunewright.trainer", str(folder.path)],
            stdout=log, stderr=log, process_group=0,
        )  # fmt: skip
    try:
        usage = Usage(process.pid)
        while not any(event["type"] == "metrics" for event in folder.read_events(told)[0]):
            if process.poll() is not None:
                sys.exit(
                    f"the trainer ended with {process.returncode}:\n{folder.log_file.read_text()[-2000:]}"
                )
            usage.look()
            time.sleep(0.5)
        return time.monotonic() - began, usage
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--starts", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "rows.jsonl"
        write_rows(data, options.rows)
        folder = job_folder(Path(name) / "job", data, options.rows)
        print(f"{options.rows} rows, {data.stat().st_size / MIB:.0f} MiB, {os.cpu_count()} cores")
        for start in range(1, options.starts + 1):
            seconds, usage = until_first_step(folder)
            sizes = (usage.trainer, usage.everything, usage.proportional)
            trainer, everything, proportional = (size // MIB for size in sizes)
            print(
                f"start {start}: first step after {seconds:.1f} s ({options.rows / seconds:.0f} rows/s), "
                f"{usage.processor_seconds:.0f} s of processors; VmHWM {trainer} MiB of the trainer, {everything} MiB "
                f"of all processes; Pss {proportional} MiB",
                flush=True,
            )
        for event in folder.read_events(0)[0]:
            print(f"  {event['message']}")


if __name__ == "__main__":
    main()
