"""What "auto" becomes: the defaults by method and by rows, and that given values win."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.plan.defaults import Resolved, rank_for, resolve, split_batch
from tunewright.plan.options import HyperparameterOptions, TuningOptions


def resolved(
    *, rows: int = 1000, context: int = 4096, max_rank: int = 64, device: str = "cpu", **options: Any
) -> Resolved:
    return resolve(
        tuning=TuningOptions(**options.get("tuning", {})),
        hyperparameters=HyperparameterOptions(**options.get("hyperparameters", {})),
        rows=rows,
        context=context,
        max_rank=max_rank,
        device=device,
    )


@pytest.mark.parametrize(
    ("rows", "rank"),
    [(1, 8), (999, 8), (1000, 16), (9999, 16), (10_000, 32), (100_000, 32), (100_001, 64), (10**9, 64)],
)
def test_the_rank_follows_the_rows(rows: int, rank: int) -> None:
    options = resolved(rows=rows)
    assert (options.rank, options.alpha) == (rank, 2.0 * rank)


@pytest.mark.parametrize(("largest", "rank"), [(8, 8), (16, 16), (32, 32), (64, 64), (512, 64)])
def test_the_rank_is_never_above_what_the_engine_serves(largest: int, rank: int) -> None:
    assert rank_for(10**6, largest) == rank
    assert resolved(rows=10**6, max_rank=largest).alpha == 2.0 * rank


@pytest.mark.parametrize(
    ("method", "rate", "quantization"), [("lora", 2e-4, None), ("qlora", 2e-4, "nf4"), ("full", 2e-5, None)]
)
def test_defaults_by_method(method: str, rate: float, quantization: str | None) -> None:
    options = resolved(tuning={"type": method})
    assert options.type == method
    assert options.learning_rate == rate
    assert options.quantization == quantization
    assert options.n_epochs == 3
    assert options.batch_size == 32
    assert options.max_length == 2048
    assert (options.warmup_ratio, options.lr_scheduler_type) == (0.03, "cosine")
    assert (options.max_grad_norm, options.weight_decay) == (1.0, 0.0)


def test_an_adapter_is_on_all_linear_layers_without_dropout() -> None:
    options = resolved()
    assert options.type == "lora"
    assert (options.target_modules, options.dropout, options.use_rslora) == ("all-linear", 0.0, False)


def test_full_fine_tuning_has_no_adapter_options() -> None:
    options = resolved(tuning={"type": "full"})
    assert (options.rank, options.alpha, options.dropout, options.target_modules) == (None, None, None, None)


def test_the_context_bounds_the_length() -> None:
    assert resolved(context=1024).max_length == 1024
    assert resolved(context=1024, tuning={"max_length": 512}).max_length == 512
    assert resolved(context=1024, tuning={"max_length": 4096}).max_length == 1024


def test_given_values_win_over_every_default() -> None:
    given_values = {
        "type": "qlora", "rank": 3, "alpha": 5.0, "dropout": 0.1, "target_modules": ["q_proj"], "use_rslora": True,
        "learning_rate": 1e-3, "n_epochs": 7, "batch_size": 6, "max_length": 99, "warmup_ratio": 0.5,
        "lr_scheduler_type": "linear", "max_grad_norm": 2.0, "weight_decay": 0.1,
    }  # fmt: skip
    assert given_values.items() <= resolved(tuning=given_values).model_dump().items()


def test_zero_is_a_given_value() -> None:
    options = resolved(tuning={"warmup_ratio": 0.0, "dropout": 0.0, "weight_decay": 0.0})
    assert options.warmup_ratio == 0.0


def test_auto_and_none_mean_choose() -> None:
    auto = dict.fromkeys(
        ("rank", "alpha", "learning_rate", "n_epochs", "batch_size", "target_modules"), "auto"
    )
    assert resolved(tuning=auto) == resolved() == resolved(tuning=dict.fromkeys(auto))


def test_tunings_own_options_win_over_openais() -> None:
    theirs = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 10}
    options = resolved(hyperparameters=theirs)
    assert (options.n_epochs, options.batch_size) == (2, 4)
    assert options.learning_rate == pytest.approx(2e-3)
    options = resolved(hyperparameters=theirs, tuning={"n_epochs": 5, "batch_size": 8, "learning_rate": 1e-5})
    assert (options.n_epochs, options.batch_size, options.learning_rate) == (5, 8, 1e-5)


def test_the_multiplier_is_of_the_methods_rate() -> None:
    options = resolved(hyperparameters={"learning_rate_multiplier": 0.5}, tuning={"type": "full"})
    assert options.learning_rate == pytest.approx(1e-5)


@given(st.integers(1, 200_000), st.sampled_from(["cpu", "cuda"]), st.none() | st.integers(1, 4096))
def test_the_batch_is_exact_and_never_more_than_there_is(rows: int, device: str, batch: int | None) -> None:
    options = resolved(rows=rows, device=device, tuning={"batch_size": batch})
    assert options.per_device_batch_size * options.gradient_accumulation_steps == options.batch_size
    assert 1 <= options.per_device_batch_size <= (8 if device == "cpu" else 4)
    if batch is not None:
        assert options.batch_size == batch
    elif rows >= 32:
        assert options.batch_size == 32
    else:
        assert 1 <= options.batch_size <= rows


@given(st.integers(1, 5000), st.integers(1, 64))
def test_the_split_takes_the_largest_divisor_that_fits(batch: int, largest: int) -> None:
    size, steps = split_batch(batch, largest)
    assert size * steps == batch
    assert size <= largest
    assert not any(batch % bigger == 0 for bigger in range(size + 1, min(batch, largest) + 1))


@given(st.integers(1, 5000), st.integers(1, 64))
def test_the_split_has_at_least_the_rows_that_a_method_needs(batch: int, largest: int) -> None:
    size, steps = split_batch(batch, largest, 2)
    assert size * steps == batch
    assert size >= min(2, batch)
    if size > largest:
        assert not any(batch % smaller == 0 for smaller in range(2, size)), "the smallest divisor"
