"""How the trainer gets its rows: waits are measured and told, processes that read them change nothing, and rows of one
length share a batch where that is asked for."""

from __future__ import annotations

import multiprocessing
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tiny import tiny_model, token_rows
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.rows.mixture import EpochOrder, Mixture, Part
from tunewright.rows.totals import Totals
from tunewright.trainer.data import epoch_order, tell_data
from tunewright.trainer.loading import LoadingCallback
from tunewright.trainer.methods.supervised import HeldOutTrainer
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import common_arguments

STEPS = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "llama", num_hidden_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    path = tmp_path / "job"
    path.mkdir()
    return JobFolder(path)


def train(
    base: Path, folder: JobFolder, *, seconds: float = 0.0, workers: int = 0
) -> tuple[LoadingCallback, Any]:
    """Some steps on rows of which each batch takes so many seconds to read."""
    loading = LoadingCallback(EventLog(folder, 0), workers)
    trainer = trainer_of(base, folder, loading, seconds=seconds, workers=workers)
    trainer.on_wait = loading.wait
    trainer.train()
    return loading, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trainer_of(
    base: Path, folder: JobFolder, *callbacks: Any, seconds: float = 0.0, workers: int = 0
) -> HeldOutTrainer:
    rows = token_rows(2 * STEPS, 8).tolist()

    def slowly(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        read = [rows[n] for n in batch["number"]]
        return {"input_ids": read, "labels": read}

    torch.manual_seed(0)
    return HeldOutTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=SFTConfig(
            output_dir=str(folder.path / "out"), use_cpu=True, bf16=False, max_steps=STEPS, logging_steps=1, seed=0,
            per_device_train_batch_size=2, report_to="none", disable_tqdm=True, save_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
            dataloader_num_workers=workers,
        ),
        train_dataset=Dataset.from_list([{"number": n} for n in range(len(rows))]).with_transform(slowly),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
        processing_class=AutoTokenizer.from_pretrained(str(embedded_base_path())),
        callbacks=[*callbacks],
    )  # fmt: skip


def warnings(folder: JobFolder) -> list[str]:
    return [e["data"]["code"] for e in folder.read_events(0)[0] if e["level"] == "warn"]


def test_steps_that_wait_for_their_rows_are_measured_and_told_once(base: Path, folder: JobFolder) -> None:
    loading, _ = train(base, folder, seconds=0.1)
    assert loading.waited > 0.1 * (STEPS - 3)
    assert warnings(folder) == ["loader_blocks"]


def test_processes_that_read_rows_change_no_loss(base: Path, folder: JobFolder) -> None:
    assert train(base, folder)[1] == train(base, folder, workers=2)[1]


def test_each_of_two_ranks_goes_on_within_a_later_epoch_where_it_was(
    base: Path, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance: Any = SimpleNamespace(
        examples=2 * STEPS, epoch=lambda number, _: np.random.default_rng(number).permutation(2 * STEPS)
    )
    trainer = trainer_of(base, folder)
    trainer.data_collator = lambda rows: [row["input_ids"] for row in rows]

    def batches(rank: int, skipped: int) -> list[Any]:
        prepared = partial(prepare_data_loader, num_processes=2, process_index=rank, put_on_device=False)
        monkeypatch.setattr(trainer.accelerator, "prepare", prepared)
        trainer.order = EpochOrder(chance)
        loader = trainer.get_train_dataloader()
        if skipped:
            loader = skip_first_batches(loader, skipped)
        loader.set_epoch(2)  # as the Trainer does
        return list(loader)

    whole = [batches(rank, 0) for rank in (0, 1)]
    assert len(whole[0]) == len(whole[1]) == STEPS // 2
    assert [batches(rank, 5) for rank in (0, 1)] == [one[5:] for one in whole]


def test_processes_that_read_rows_end_with_a_killed_trainer(base: Path, folder: JobFolder) -> None:
    """They have inherited the lock of the job folder, without which no other process goes on with the job."""
    trainer = multiprocessing.get_context("fork").Process(
        target=train, args=(base, folder), kwargs={"seconds": 1.0, "workers": 2}
    )
    trainer.start()
    assert trainer.pid is not None
    process, readers = psutil.Process(trainer.pid), list[psutil.Process]()
    while len(readers) < 2:
        assert process.is_running()
        time.sleep(0.02)
        readers = process.children()
    trainer.kill()
    trainer.join()
    deadline = time.monotonic() + 2  # torch's own readers look every 5 s whether it lives
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in readers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tuning(**options: Any) -> Any:
    return resolve(
        tuning=TuningOptions(batch_size=8, **options), hyperparameters=HyperparameterOptions(), rows=64, context=64,
        max_rank=8, device="cpu",
    )  # fmt: skip


def test_the_trainer_has_the_workers_and_the_order_that_were_resolved(folder: JobFolder) -> None:
    one = SimpleNamespace(totals=SimpleNamespace(examples=64))
    plain = Mixture([Part("a", one)], 1)  # type: ignore[arg-type]
    spec = TrainingSpec(
        job_id="one", base_name="tiny", base_path="", training_file="", seed=0, device="cpu",
        tuning=tuning(dataloader_workers=3),
    )  # fmt: skip
    assert common_arguments(spec, folder, 64, evaluates=False)["dataloader_num_workers"] == 3
    assert epoch_order(plain, tuning()) is None
    assert epoch_order(plain, tuning(group_by_length=True)) is not None
    assert epoch_order(Mixture([Part("a", one, 2.0)], 1), tuning()) is not None  # type: ignore[arg-type]


def test_a_job_tells_that_its_batches_are_padding(folder: JobFolder) -> None:
    few_long = Totals(
        source="", max_length=64, rows=100, examples=100, tokens=775, learnt=100, truncated=0, dropped=0, lost=0,
        longest=60, lengths={5: 95, 60: 5},
    )  # fmt: skip
    file: Any = SimpleNamespace(totals=few_long)
    training = Mixture([Part("a", file)], seed=1)
    tell_data(EventLog(folder, 0), training, tuning(group_by_length=True))
    assert warnings(folder) == []
    tell_data(EventLog(folder, 0), training, tuning())
    assert warnings(folder) == ["rows_padded"]
