"""What a second GPU gives a job, and that it changes nothing else. Each cell is a whole job, run by the trainer's own
launcher in a job folder.

    python -m benchmarks.two_gpus speed /data/two                     # 7B shape: tokens/s, s/step, GiB of each card
    python -m benchmarks.two_gpus same /data/two                      # 0.5B shape: losses, kills, resumed on 1 and 2
    python -m benchmarks.two_gpus all /tmp/two --tiny --device cpu    # a dry run on the CPU, with a tiny shape

speed: LoRA and QLoRA on one GPU and on two (DDP), full fine-tuning on two (FSDP2); ended by kill -9 of the launcher
after some steps, which must leave no process. same: LoRA and full fine-tuning on one GPU and on two, supervised and
dpo; a rank of two is killed behind the first checkpoint, and the job goes on with two, or with one; and one goes on
with two. The bases have random weights (`random_base`), the rows random words. Results are added to
FOLDER/results.jsonl, and all of them are printed as one table; a cell that is in it is not run again, unless --again is
given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tunewright.jobs.folder import JobFolder

SKIPPED = 3
"""First steps that are not measured: kernels are chosen and memory is allocated in them."""
BOUND = {"cpu": 1e-4, "cuda": 2e-2}
"""Largest relative difference of a step's loss on two processes from that on one. On a GPU products of matrices are of
bfloat16 numbers, and their order differs."""
FAILED = "failed"
WORDS = ("red", "blue", "green", "door", "car", "cat", "box", "cup", "sky", "sea")


@dataclass(frozen=True)
class Cell:
    """A job, or several that go on from one folder."""

    name: str
    part: str
    type: str
    gpus: int
    method: str = "supervised"
    then: int | None = None
    """GPUs with which it goes on when a rank was killed behind its first checkpoint."""
    same_as: str | None = None
    """The cell whose losses it must have."""
    tuning: dict[str, Any] = field(default_factory=dict)


def cells() -> list[Cell]:
    speed = [
        Cell("lora, 1 GPU", "speed", "lora", 1),
        Cell("lora, 2 GPUs (DDP)", "speed", "lora", 2),
        Cell("qlora, 1 GPU", "speed", "qlora", 1),
        Cell("qlora, 2 GPUs (DDP)", "speed", "qlora", 2),
        Cell("full, 2 GPUs (FSDP2)", "speed", "full", 2),
    ]
    same = []
    for method, type in (("supervised", "lora"), ("supervised", "full"), ("dpo", "lora"), ("dpo", "full")):
        what = f"{method} {type}"
        one = f"{what}, 1 GPU"
        same.append(Cell(one, "same", type, 1, method))
        same.append(Cell(f"{what}, 2 GPUs", "same", type, 2, method, same_as=one))
        if method == "supervised":
            same += [
                Cell(f"{what}, 2 GPUs, killed, then 2", "same", type, 2, method, then=2, same_as=one),
                Cell(f"{what}, 2 GPUs, killed, then 1", "same", type, 2, method, then=1, same_as=one),
                Cell(f"{what}, 1 GPU, killed, then 2", "same", type, 1, method, then=2, same_as=one),
            ]
    same.append(Cell("supervised full, 2 GPUs (DDP)", "same", "full", 2, same_as="supervised full, 1 GPU",
                     tuning={"sharding": "none"}))  # fmt: skip
    return speed + same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["speed", "same", "all"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny shape, and short rows: a dry run of the cells"
    )
    parser.add_argument(
        "--only", help="cells whose names have this text, and those that they are compared with"
    )
    parser.add_argument("--again", action="store_true", help="run cells that have a result too")
    parser.add_argument("--seconds", type=float, default=400, help="most seconds of a job")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "results.jsonl"
    wanted = {
        cell.name: cell
        for cell in cells()
        if options.part in ("all", cell.part) and (options.only or "") in cell.name
    }
    compared = {cell.same_as for cell in wanted.values()}
    for cell in cells():
        if cell.name in results(file) and not (options.again and cell.name in wanted):
            continue
        if cell.name not in wanted and cell.name not in compared:
            continue
        began = time.monotonic()
        try:
            found = Run(options, cell).result()
        except Exception as error:  # the other cells are worth their numbers
            found = {FAILED: f"{type(error).__name__}: {error}"[:2000]}
        found |= {"cell": cell.name, "part": cell.part, "wall_seconds": round(time.monotonic() - began, 1)}
        with file.open("a") as out:
            out.write(json.dumps(found) + "\n")
        print(row(found), flush=True)
    print("\n" + "\n".join(table(results(file), options.device)))
    sys.exit(any(FAILED in one for one in results(file).values()))


def results(file: Path) -> dict[str, dict[str, Any]]:
    """The newest result of each cell by its name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {one["cell"]: one for one in map(json.loads, lines)}


class Run:
    """One cell's job."""

    def __init__(self, options: argparse.Namespace, cell: Cell) -> None:
        self.options, self.cell = options, cell
        self.base = make_base(options, cell.part)
        name = "".join(letter if letter.isalnum() else "-" for letter in cell.name)
        path = options.folder / "jobs" / name
        shutil.rmtree(path, ignore_errors=True)
        self.folder = JobFolder(path)
        path.mkdir(parents=True)
        self.rows = write_rows(path / "rows.jsonl", self.number_of_rows, cell.method, self.words)

    @property
    def words(self) -> int:
        return 40 if self.options.tiny else 700

    @property
    def batch(self) -> int:
        """Rows of a step."""
        if self.cell.part == "speed" and not self.options.tiny:
            return 8 if self.cell.type == "full" else 32
        return 8

    @property
    def number_of_rows(self) -> int:
        return self.batch * (12 if self.cell.part == "speed" else 4)

    def result(self) -> dict[str, Any]:
        try:
            return self._measured_speed() if self.cell.part == "speed" else self._compared()
        finally:
            for heavy in ("checkpoints", "work", "model", ".model.tmp"):
                shutil.rmtree(self.folder.path / heavy, ignore_errors=True)

    def _measured_speed(self) -> dict[str, Any]:
        self.write_spec(self.cell.gpus)
        process = self.start(self.cell.gpus)
        last = SKIPPED + 6
        self.until(process, lambda: last in self.metrics())
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        if alive:
            raise RuntimeError(f"processes outlived the launcher: {alive}")
        steps = [one for step, one in self.metrics().items() if SKIPPED < step <= last]
        seconds = steps[-1]["at"] - self.metrics()[SKIPPED]["at"]
        rates = [one["tokens_per_second"] for one in steps]
        return {
            "gpus": self.cell.gpus,
            "tokens_per_second": round(sum(rates) / len(rates), 1),
            "seconds_per_step": round(seconds / len(steps), 4),
            "peak_gib": round(max(one["memory_bytes"] for one in steps) / 2**30, 2),
            "losses": {step: one["train_loss"] for step, one in self.metrics().items()},
        }

    def _compared(self) -> dict[str, Any]:
        self.write_spec(self.cell.gpus)
        process = self.start(self.cell.gpus)
        if self.cell.then is not None:
            self.until(process, lambda: any(step >= 5 for step in self.metrics()))
            launcher = psutil.Process(process.pid)
            # Of one process the children read rows.
            ranks = sorted(launcher.children(), key=lambda one: one.pid) if self.cell.gpus > 1 else [launcher]
            ranks[-1].kill()
            code = process.wait(60)
            if code != -signal.SIGKILL:
                raise RuntimeError(f"a killed rank ended the launcher with {code}")
            self.write_spec(self.cell.then)
            process = self.start(self.cell.then)
        code = process.wait(self.options.seconds)
        outcome = self.folder.read_outcome()
        if code != 0 or outcome is None or outcome.status != "succeeded":
            raise RuntimeError(f"code {code}, {outcome}: {self.log()}")
        losses = {step: one["train_loss"] for step, one in self.metrics().items()}
        held_out = {step: one["valid_loss"] for step, one in self.metrics().items() if "valid_loss" in one}
        found: dict[str, Any] = {"gpus": self.cell.gpus, "losses": losses, "held_out": held_out}
        if self.cell.then is not None:
            messages = [one["message"] for one in self.folder.read_events(0)[0]]
            found["resumed"] = next(one for one in messages if one.startswith("Resuming"))
        if self.cell.same_as is not None:
            other = results(self.options.folder / "results.jsonl")[self.cell.same_as]
            theirs = {int(step): loss for step, loss in other["losses"].items()}
            if sorted(theirs) != sorted(losses):
                raise RuntimeError(f"steps {sorted(losses)}, and not {sorted(theirs)}")
            differences = [abs(losses[step] - theirs[step]) / abs(theirs[step]) for step in losses]
            found["difference"] = max(differences)
            if found["difference"] > BOUND[self.options.device]:
                found[FAILED] = f"losses differ by {found['difference']:.2g}: {losses} and {theirs}"
        return found

    def write_spec(self, gpus: int) -> None:
        from tunewright.plan.defaults import resolve
        from tunewright.plan.options import HyperparameterOptions, TuningOptions
        from tunewright.trainer.spec import TrainingSpec

        cell, options = self.cell, self.options
        tuning = {
            "type": cell.type, "gpus": gpus, "n_epochs": 1 if cell.part == "speed" else 2,
            "batch_size": self.batch, "per_device_batch_size": 2 if cell.type == "full" else 4,
            "max_length": 128 if options.tiny else 1024, "learning_rate": 1e-4 if cell.type != "full" else 1e-5,
            **cell.tuning,
        }  # fmt: skip
        if cell.type != "full":
            tuning["rank"] = 16
        self.folder.write_spec(
            TrainingSpec(
                job_id="ftjob-benchmark",
                base_name=self.base.name,
                base_path=str(self.base),
                training_file=str(self.rows),
                validation_file=str(self.rows) if cell.part == "same" else None,
                seed=7,
                device=options.device,
                method=cell.method,
                tuning=resolve(
                    tuning=TuningOptions(**tuning),
                    hyperparameters=HyperparameterOptions(),
                    rows=self.number_of_rows,
                    context=1024,
                    max_rank=64,
                    device=options.device,
                    method=cell.method,
                ),
            )
        )

    def start(self, gpus: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self.options.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
        with self.folder.log_file.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tunewright.trainer", str(self.folder.path)],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def until(self, process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.options.seconds
        while not condition():
            if process.poll() is not None:
                raise RuntimeError(
                    f"it ended with {process.returncode}, {self.folder.read_outcome()}: {self.log()}"
                )
            if time.monotonic() > deadline:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.send_signal(signal.SIGABRT)  # each writes its stack
                time.sleep(2)
                process.kill()
                raise RuntimeError(f"it took more than {self.options.seconds:.0f} s: {self.log()}")
            time.sleep(0.05)

    def metrics(self) -> dict[int, dict[str, Any]]:
        """What the last event of each step has."""
        events = [one for one in self.folder.read_events(0)[0] if one["type"] == "metrics"]
        return {one["data"]["step"]: one["data"] | {"at": one["created_at"]} for one in events}

    def log(self) -> str:
        return self.folder.log_file.read_text(errors="replace")[-1500:]


def make_base(options: argparse.Namespace, part: str) -> Path:
    shape = "tiny" if options.tiny else "qwen2-7b" if part == "speed" else "qwen2-0.5b"
    base: Path = options.folder / shape
    if not (base / "config.json").exists():
        command = [
            sys.executable,
            "-m",
            "benchmarks.random_base",
            shape,
            str(base),
            "--device",
            options.device,
        ]
        subprocess.run(command, check=True)
    return base


def write_rows(path: Path, number: int, method: str, words: int) -> Path:
    """Rows of random words: chats, or pairs of answers."""
    chance = random.Random(0)

    def text(length: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(length))

    rows: list[dict[str, Any]] = []
    for _ in range(number):
        question = {"role": "user", "content": text(8)}
        if method == "dpo":
            answers = [[{"role": "assistant", "content": text(words // 4)}] for _ in range(2)]
            rows.append({"input": {"messages": [question]}, "preferred_output": answers[0],
                         "non_preferred_output": answers[1]})  # fmt: skip
        else:
            rows.append({"messages": [question, {"role": "assistant", "content": text(words)}]})
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def table(found: dict[str, dict[str, Any]], device: str) -> list[str]:
    lines = [
        f"device {device}",
        "cell\ttokens/s\tx one\ts/step\tpeak GiB of a card\tlargest difference of losses\twall s",
    ]
    for one in found.values():
        alone = found.get(one["cell"].split(",")[0] + ", 1 GPU", {}).get("tokens_per_second")
        lines.append(row(one, alone))
    return lines


def row(one: dict[str, Any], alone: float | None = None) -> str:
    if FAILED in one:
        return f"{one['cell']}\t{FAILED}: {one[FAILED]}"
    rate = one.get("tokens_per_second")
    ratio = f"{rate / alone:.2f}" if rate and alone else ""
    difference = f"{one['difference']:.1e}" if "difference" in one else ""
    values = [rate, ratio, one.get("seconds_per_step"), one.get("peak_gib"), difference, one["wall_seconds"]]
    return "\t".join([one["cell"], *("" if value is None else str(value) for value in values)])


if __name__ == "__main__":
    main()
