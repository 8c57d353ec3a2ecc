"""Seconds a step and peak memory of the service's trainer against a plain TRL script, alternated.

    python -m benchmarks.training /data/big --type lora qlora --batch 1 4       # /data/big: see random_base
    python -m benchmarks.training /data/big --type lora --batch 4 --profile service

Both train the same rows of random tokens with the same hyperparameters; `--try` adds variants of the service's trainer:

    no-checkpointing   activations are kept instead of computed again
    compile            each decoder layer is compiled by torch.compile
    fastest            both
    liger              liger-kernel's fused norms, rotary embeddings and MLP, without checkpointing

Each run is a process of its own. The first steps warm up and are not counted; the device is synchronised at the end of
the counted ones only. The mean loss of the run is printed so that a variant that computes something else is seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory_grid import RANK, spec_of

WARM_UP = 4
VARIANTS = ("no-checkpointing", "compile", "fastest", "liger")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--type", nargs="+", choices=["lora", "qlora"], default=["lora", "qlora"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12, help="counted steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--try", dest="variants", nargs="+", choices=VARIANTS, default=[], metavar="VARIANT", help="see above"
    )
    parser.add_argument("--equal", action="store_true", help="rows of equal length, which need no mask")
    parser.add_argument("--profile", metavar="RUN", help="print where the time of a run's steps goes instead")
    parser.add_argument("--json", type=Path, help="append each run to this file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(train(json.loads(options.run))))
        return
    print("type\tbatch\trun\ts/step (min to max)\ttokens/s\tGiB\tloss\tagainst TRL", flush=True)
    for type in options.type:
        for batch in options.batch:
            compare(options, type, batch)


def compare(options: argparse.Namespace, type: str, batch: int) -> None:
    cell = {
        "base": str(options.base.resolve()), "device": options.device, "type": type, "batch": batch,
        "length": options.length, "steps": options.steps, "equal": options.equal,
    }  # fmt: skip
    if options.profile:
        started([*_command(options), json.dumps({**cell, "run": options.profile, "profile": True})])
        return
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for run in ("trl", "service", *options.variants):
            found = started([*_command(options), json.dumps({**cell, "run": run})])
            if found is None:
                continue
            runs.setdefault(run, []).append(found)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps({**cell, "run": run, **found}) + "\n")
    for run, rows in runs.items():
        seconds = [row["seconds"] for row in rows]
        median = statistics.median(seconds)
        ratio = statistics.median(row["seconds"] for row in runs["trl"]) / median if "trl" in runs else 0.0
        print(
            f"{type}\t{batch}\t{run}\t{median:.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
            f"\t{batch * options.length / median:.0f}\t{rows[0]['bytes'] / 2**30:.1f}\t{rows[0]['loss']:.4f}"
            f"\t{ratio:.2f}",
            flush=True,
        )


def _command(options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "benchmarks.training", str(options.base), "--run"]


def started(command: list[str]) -> dict[str, Any] | None:
    """What a run measured; None, with the cause on standard error, where it failed."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        print("\n".join(ended.stderr.strip().splitlines()[-8:]), file=sys.stderr, flush=True)
        return None
    *lines, last = ended.stdout.splitlines()
    if "--profile" in sys.argv:
        print("\n".join(lines), flush=True)
    return dict(json.loads(last))


def train(run: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    on_gpu = run["device"] != "cpu"
    generator = torch.Generator().manual_seed(0)
    count = (WARM_UP + run["steps"]) * run["batch"]
    rows = torch.randint(4, 2000, (count, run["length"]), generator=generator).tolist()
    if run["batch"] > 1 and not run["equal"]:  # a batch of rows of unequal length needs a mask
        rows[:: run["batch"]] = [row[:-1] for row in rows[:: run["batch"]]]
    dataset = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])

    class Clock(TrainerCallback):  # type: ignore[misc]
        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                self.began = _now(on_gpu)
            elif state.global_step == WARM_UP + run["steps"]:
                self.ended = _now(on_gpu)

    clock = Clock()
    make = plain_trl if run["run"] == "trl" else service
    trainer = make(run, dataset, Path(tempfile.mkdtemp()))
    trainer.add_callback(clock)
    if run.get("profile"):
        trainer.add_callback(profiler(TrainerCallback))
    trainer.train()
    [loss] = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    return {
        "seconds": (clock.ended - clock.began) / run["steps"],
        "bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "loss": loss,
    }


def _now(on_gpu: bool) -> float:
    import torch

    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def profiler(callback: Any) -> Any:
    """A callback that prints the operations and kernels that took the most time of the last three steps."""
    from torch.profiler import ProfilerActivity, profile

    class Profiler(callback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps - 3:
                self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
                self.profile.start()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.profile.stop()
            averages = self.profile.key_averages()
            print(averages.table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90))

    return Profiler()


def plain_trl(run: dict[str, Any], dataset: Any, folder: Path) -> Any:
    """What a user would write with TRL alone, with the same hyperparameters as the service's."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    on_gpu = run["device"] != "cpu"
    extra = {}
    if run["type"] == "qlora":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        run["base"],
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device_map={"": 0 if on_gpu else "cpu"},
        **extra,
    )
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=run["batch"], max_length=run["length"],
            learning_rate=1e-4, lr_scheduler_type="linear", bf16=on_gpu, use_cpu=not on_gpu,
            gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False},
            optim="adamw_torch_fused" if on_gpu else "adamw_torch",
            dataset_kwargs={"skip_prepare_dataset": True}, report_to="none", save_strategy="no",
            logging_steps=WARM_UP + run["steps"], num_train_epochs=1, seed=0, data_seed=0, disable_tqdm=True,
        ),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(run["base"]),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear"
        ),
    )  # fmt: skip


def service(run: dict[str, Any], dataset: Any, folder: Path) -> Any:
    """The trainer of a job, with the callbacks that write its events and checkpoints."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tunewright.jobs.folder import EventLog, JobFolder
    from tunewright.trainer import loop
    from tunewright.trainer.methods.supervised import HeldOutTrainer, configured
    from tunewright.trainer.model import load_model, load_tokenizer
    from tunewright.trainer.speed import compile_layers, leave_out_mask
    from tunewright.trainer.training import common_arguments

    spec = spec_of(
        Path(run["base"]), run["device"], len(dataset), type=run["type"], batch_size=run["batch"],
        per_device_batch_size=run["batch"], max_length=run["length"], learning_rate=1e-4, lr_scheduler_type="linear",
        warmup_ratio=0.0, dropout=0.0, gradient_checkpointing=run["run"] in ("service", "compile"),
    )  # fmt: skip
    job = JobFolder(folder)
    metrics = loop.MetricsCallback(EventLog(job, 0))
    model = load_model(spec, job.initial)
    arguments = configured(common_arguments(spec, job, len(dataset), evaluates=False))
    leave_out_mask(model)
    if run["run"] == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2(model=model.get_base_model(), fused_linear_cross_entropy=False)
    elif run["run"] in ("compile", "fastest"):
        compile_layers(model)
    return HeldOutTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        processing_class=load_tokenizer(spec),
        callbacks=[metrics, loop.CheckpointCallback(job, metrics, 1e9), loop.HeartbeatCallback(job)],
    )


if __name__ == "__main__":
    main()
