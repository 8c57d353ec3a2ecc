"""The schedule of the learning rate is transformers' of that name, and options that it does not have are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from transformers import optimization  # noqa: E402

from preferences import job_folder, text_rows  # noqa: E402
from tunewright.plan.schedulers import SchedulerName, scheduler_options, why_not  # noqa: E402
from tunewright.trainer.spec import TrainingSpec  # noqa: E402
from tunewright.trainer.training import common_arguments  # noqa: E402

STEPS, WARMUP = 40, 4
EXPECTED: dict[str, tuple[dict[str, float], Callable[[Any], Any]]] = {
    "cosine": ({"num_cycles": 1.5}, lambda o: optimization.get_cosine_schedule_with_warmup(o, WARMUP, STEPS, 1.5)),
    "linear": ({}, lambda o: optimization.get_linear_schedule_with_warmup(o, WARMUP, STEPS)),
    "constant": ({}, optimization.get_constant_schedule),
    "constant_with_warmup": ({}, lambda o: optimization.get_constant_schedule_with_warmup(o, WARMUP)),
    "cosine_with_restarts": (
        {"num_cycles": 3},
        lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARMUP, STEPS, 3),
    ),
    "cosine_with_min_lr": (
        {}, lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, STEPS, min_lr_rate=0.1),
    ),
    "cosine_warmup_with_min_lr": (
        {"min_lr": 1e-5, "warmup_lr_rate": 0.2},
        lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
            o, WARMUP, STEPS, min_lr=1e-5, warmup_lr_rate=0.2
        ),
    ),
    "polynomial": (
        {"lr_end": 1e-6, "power": 2}, lambda o: optimization.get_polynomial_decay_schedule_with_warmup(
            o, WARMUP, STEPS, lr_end=1e-6, power=2
        ),
    ),
    "inverse_sqrt": ({"timescale": 5}, lambda o: optimization.get_inverse_sqrt_schedule(o, WARMUP, timescale=5)),
    "warmup_stable_decay": ({}, lambda o: optimization.get_wsd_schedule(o, WARMUP, 4, num_training_steps=STEPS)),
}  # fmt: skip


def rates(scheduler: Any, optimizer: Any) -> list[float]:
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_the_rates_of_a_job_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    options, expected = EXPECTED[name]
    folder = job_folder(
        tmp_path / "job", text_rows(40), n_epochs=4, batch_size=4, warmup_ratio=WARMUP / STEPS, learning_rate=1e-3,
        lr_scheduler_type=name, lr_scheduler_kwargs=options or "auto",
    )  # fmt: skip
    given = common_arguments(folder.read_spec(TrainingSpec), folder, 40, evaluates=False)
    own = {
        key: given[key] for key in ("output_dir", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")
    }
    arguments = transformers.TrainingArguments(
        **own, warmup_steps=given["warmup_steps"], use_cpu=True, report_to="none"
    )
    trainer = transformers.Trainer(torch.nn.Linear(2, 1), arguments)
    trainer.create_optimizer_and_scheduler(STEPS)
    other = torch.optim.AdamW(torch.nn.Linear(2, 1).parameters(), lr=1e-3)

    assert rates(trainer.lr_scheduler, trainer.optimizer) == pytest.approx(
        rates(expected(other), other), rel=1e-9
    )
    assert why_not(name, options) is None


@pytest.mark.parametrize(("epochs", "expected"), [(1, 0), (2, 1), (40, 2)])
def test_a_warm_up_leaves_a_step_to_learn_in(tmp_path: Path, epochs: int, expected: int) -> None:
    """A step of it: the first has a rate of 0, so that the only step of a job would change nothing."""
    folder = job_folder(tmp_path / "job", text_rows(4), n_epochs=epochs, batch_size=4, warmup_ratio=0.03)
    given = common_arguments(folder.read_spec(TrainingSpec), folder, 4, evaluates=False)
    assert given["warmup_steps"] == expected


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("linear", {"num_cycles": 1}, "has no option num_cycles: it has none"),
        ("cosine", {"power": 1}, "has no option power: it has num_cycles"),
        ("cosine_with_min_lr", {"min_lr_rate": 2}, "from 0 to 1, not 2"),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1, "min_lr": 0.1}, "give one"),
        ("warmup_stable_decay", {"num_decay_steps": 2.5}, "whole number"),
        ("cosine_with_restarts", {"num_cycles": 1.5}, "whole number"),
    ],
)  # fmt: skip
def test_options_that_a_schedule_does_not_have_are_refused(
    name: str, options: dict[str, float], told: str
) -> None:
    assert told in str(why_not(name, options))


def test_the_decay_is_never_longer_than_what_follows_the_warm_up() -> None:
    assert scheduler_options("warmup_stable_decay", {"num_decay_steps": 50}, 10, 3) == {"num_decay_steps": 7}
    assert scheduler_options("warmup_stable_decay", {}, 1, 1) == {"num_decay_steps": 1}
