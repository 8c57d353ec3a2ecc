"""Memory that was measured, advice, and the smallest change that makes a run fit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tunewright.plan.cost import Cost, Rates, cost_of
from tunewright.plan.data_shape import DataShape, data_shape
from tunewright.plan.defaults import Resolved, resolve, workers_for
from tunewright.plan.fitting import run_of, work_of
from tunewright.plan.machine import GIB, Machine, UnknownMachine, card_of, described
from tunewright.plan.memory import Run, estimate
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.pitfalls import (
    attention_fallback,
    batch_out_of_range,
    few_rows,
    loader_blocks,
    merge_changes_type,
    rank_too_large,
    rate_out_of_range,
    rows_cut,
    rows_padded,
    targets_missed,
)
from tunewright.plan.planning import Plan, make_plan
from tunewright.plan.prediction import predict
from tunewright.plan.shape import ModelShape, shape_of
from tunewright.plan.time import Earlier, Measured, TimeRange, Work, predict_seconds

QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}  # fmt: skip


def qwen2_7b() -> ModelShape:
    h, i, v = 3584, 18944, 152064
    tensors = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), ("BF16", (v, h)))
    sizes = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (512, h), "self_attn.v_proj": (512, h),
        "self_attn.o_proj": (h, h), "mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i),
    }  # fmt: skip
    for layer in range(28):
        for name, size in sizes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = ("BF16", size)
    return shape_of(QWEN2_7B, tensors)


DATA = data_shape(5000, [(1024, 700)] * 5000)


def planned(machine: Machine, method: str = "supervised", **tuning: object) -> Plan:
    return make_plan(
        qwen2_7b(),
        DATA,
        machine,
        tuning=TuningOptions(**tuning),
        hyperparameters=HyperparameterOptions(),
        max_rank=64,
        method=method,
    )


@pytest.mark.parametrize(("type", "batch", "measured"), [("lora", 4, 18.4), ("qlora", 1, 6.5)])
def test_what_an_h200_allocated_is_estimated_within_five_percent(
    type: str, batch: int, measured: float
) -> None:
    """Measured on 2026-11-29 at 2,048 tokens, rank 16, all-linear, with checkpointing: the peak of torch, in GiB, of
    LoRA with an adapter in bfloat16, and of plain TRL's QLoRA."""
    memory = estimate(qwen2_7b(), Run(type, "cuda", batch, 2048, True, 16, accumulates=False))
    wider = (memory.adapter + memory.gradients + memory.optimizer) / 2 if type == "lora" else 0

    assert (memory.allocated - wider) / GIB == pytest.approx(measured, rel=0.05)


def test_dropout_and_dora_keep_copies_of_their_inputs() -> None:
    run = Run("lora", "cuda", 4, 2048, False, 16)
    plain = estimate(qwen2_7b(), run).activations

    assert estimate(qwen2_7b(), replace(run, drops=True)).activations > 1.1 * plain
    assert estimate(qwen2_7b(), replace(run, use_dora=True)).activations > 1.1 * plain


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("type", ["lora", "qlora", "full"])
def test_more_of_anything_never_needs_less_memory(type: str, device: str) -> None:
    shape, small = qwen2_7b(), Run(type, device, 1, 512, True, 8)
    least = estimate(shape, small).total

    for more in ({"batch": 2}, {"length": 1024}, {"rank": 64}, {"checkpointing": False}):
        assert estimate(shape, replace(small, **more)).total >= least, more


def test_components_add_up() -> None:
    memory = estimate(qwen2_7b(), Run("full", "cuda", 2, 512, True))

    assert sum(memory.components().values()) == memory.total


@pytest.mark.parametrize(
    ("machine", "advised"), [("H200", "lora"), ("A100-40GB", "lora"), ("RTX4090", "lora"), ("T4", "qlora")]
)
def test_the_method_follows_the_memory_of_a_device(machine: str, advised: str) -> None:
    assert planned(described(machine)).advised == advised


def test_a_device_with_much_memory_trains_all_weights() -> None:
    assert planned(Machine("big", "cuda", 1, 300 * GIB)).advised == "full"


def test_auto_trains_an_adapter_where_full_is_advised() -> None:
    plan = planned(Machine("big", "cuda", 1, 300 * GIB))

    assert (plan.advised, plan.type) == ("full", "lora")


def test_few_rows_do_not_train_all_weights() -> None:
    options = {"tuning": TuningOptions(), "hyperparameters": HyperparameterOptions(), "max_rank": 64}
    plan = make_plan(
        qwen2_7b(), data_shape(9, [(64, 9)] * 9), Machine("big", "cuda", 1, 300 * GIB), **options
    )

    assert plan.advised == "lora"
    assert "few_rows" in {warning.code for warning in plan.warnings}


def test_the_memory_of_engines_is_not_available() -> None:
    machine = replace(described("A100-40GB"), reserved=int(20e9))

    assert planned(machine).available == int(20e9)
    assert planned(machine).advised == "qlora"


def test_what_fits_needs_no_change() -> None:
    plan = planned(described("H200"), type="lora")

    assert plan.fits
    assert plan.change is None


def test_checkpointing_is_the_first_change() -> None:
    plan = planned(described("A100-40GB"), type="lora", gradient_checkpointing=False)

    assert not plan.fits
    assert plan.change is not None
    assert plan.change.options == {"gradient_checkpointing": True}


def test_a_smaller_batch_at_a_time_comes_before_shorter_rows() -> None:
    plan = planned(Machine("small", "cuda", 1, int(18.6 * GIB)), type="lora")

    assert plan.change is not None
    assert list(plan.change.options) == ["per_device_batch_size"]


def test_another_method_comes_after_length_and_rank() -> None:
    plan = planned(described("RTX4090"), type="full")

    assert plan.change is not None
    assert plan.change.options["type"] in ("lora", "qlora")


def test_what_no_change_makes_fit_names_the_number_of_devices() -> None:
    plan = planned(Machine("tiny", "cuda", 1, 6 * GIB), type="qlora")

    assert (plan.fits, plan.change) == (False, None)
    assert plan.sharding is not None
    assert "such devices" in plan.sharding


def test_every_option_has_a_value_a_reason_and_a_source() -> None:
    choices = {choice.name: choice for choice in planned(described("H200"), rank=32).options}

    assert (choices["rank"].value, choices["rank"].source) == (32, "request")
    assert all(choice.reason and choice.source for choice in choices.values())
    unexplained = {
        "type",
        "method",
        "truncation",
        "group_by_length",
        "order_batch_size",
        "packing",
        "init",
        "lr_scheduler_kwargs",
        "loraplus_lr_ratio",
        "neftune_alpha",
        "early_stopping",
        "best_checkpoint",
        "eval_interval",
        "use_rslora",
        "use_dora",
        "quantization",
    }
    of_dpo = {"beta", "loss_type", "label_smoothing"}
    of_kto = {"beta", "desirable_weight", "undesirable_weight"}
    of_reinforcement = {
        "algorithm",
        "num_generations",
        "max_completion_length",
        "temperature",
        "sampling",
        "eval_samples",
        "eval_interval",
    }
    assert set(choices) >= set(Resolved.model_fields) - unexplained - of_dpo - of_kto - of_reinforcement
    assert not (of_dpo | of_kto | of_reinforcement) & set(choices)
    labelled = {choice.name for choice in planned(described("H200"), "kto").options}
    assert labelled >= of_kto
    assert not labelled & (of_dpo - of_kto)
    preferences = planned(described("H200"), "dpo", loss_type="robust").options
    assert {choice.name for choice in preferences} >= of_dpo


def test_a_pair_is_two_sequences_and_a_reference_takes_memory_and_time() -> None:
    plain = planned(described("H200"), type="lora", per_device_batch_size=4, gradient_checkpointing=False)
    pairs = planned(
        described("H200"), "dpo", type="lora", per_device_batch_size=2, gradient_checkpointing=False
    )
    needs, needs_for_pairs = (
        next(one for one in plan.methods if one.type == "lora") for plan in (plain, pairs)
    )

    # The reference's pass keeps nothing, beside all that the backward pass needs.
    assert 1.0 < needs_for_pairs.memory["total"] / needs.memory["total"] < 1.3
    assert pairs.steps == plain.steps // 3, "one epoch, not three"
    assert needs.seconds is not None
    assert needs_for_pairs.seconds is not None
    assert 3 * needs_for_pairs.seconds.least / needs.seconds.least == pytest.approx(1.5, rel=0.01)


def test_kto_asks_for_exchanged_answers_and_the_reference_twice_and_for_two_rows_at_a_time() -> None:
    options: dict[str, Any] = {"type": "lora", "per_device_batch_size": 4, "gradient_checkpointing": False}
    plain, labelled = planned(described("H200"), **options), planned(described("H200"), "kto", **options)
    needs, needs_for_labelled = (
        next(one for one in plan.methods if one.type == "lora") for plan in (plain, labelled)
    )
    assert needs.seconds is not None
    assert needs_for_labelled.seconds is not None
    assert 3 * needs_for_labelled.seconds.least / needs.seconds.least == pytest.approx(5 / 2, rel=0.01)

    small = planned(described("T4"), "kto", type="lora", per_device_batch_size=1)
    values = {choice.name: choice.value for choice in small.options}
    assert values["per_device_batch_size"] == 2


def test_reinforcement_learns_from_all_answers_to_a_prompt_and_keeps_the_keys_and_values_of_a_step() -> None:
    options: dict[str, Any] = {
        "type": "qlora", "num_generations": 8, "max_completion_length": 512, "max_length": 1024, "batch_size": 4,
        "gradient_checkpointing": True,
    }  # fmt: skip
    resolved = resolve(
        tuning=TuningOptions(**options), hyperparameters=HyperparameterOptions(), rows=5000, context=32768,
        max_rank=64, device="cuda", method="reinforcement",
    )  # fmt: skip
    run = run_of(resolved, data_shape(10, [(300, 1)] * 10), "cuda")
    assert (run.batch, run.length, run.generated) == (8, 300 + 512, 32), (
        "of 4 prompts at a time one is learnt from"
    )
    assert run.learnt == pytest.approx(512 / 812)
    assert not run.has_reference, "beta is 0"
    shape = qwen2_7b()
    cache = 28 * 2 * 4 * 128 * 2
    """Bytes of a token: layers, keys and values, heads, width, bfloat16."""
    many = estimate(shape, replace(run, generated=4096))
    assert many.peak == "generation"
    assert many.activations == pytest.approx(4096 * 812 * cache, rel=0.05)
    assert estimate(shape, run).peak != "generation"
    small = make_plan(
        shape, data_shape(10, [(300, 1)] * 10), described("L4"), tuning=TuningOptions(**options | {"batch_size": 64}),
        hyperparameters=HyperparameterOptions(), max_rank=64, method="reinforcement",
    )  # fmt: skip
    assert small.change is not None
    assert small.change.options["max_completion_length"] in (256, 128)


def test_orpo_is_two_sequences_without_a_reference() -> None:
    options: dict[str, Any] = {"type": "lora", "per_device_batch_size": 2, "gradient_checkpointing": False}
    dpo, orpo = planned(described("H200"), "dpo", **options), planned(described("H200"), "orpo", **options)
    one, other = (next(found for found in plan.methods if found.type == "lora") for plan in (dpo, orpo))
    assert one.seconds is not None
    assert other.seconds is not None
    assert one.seconds.least / other.seconds.least == pytest.approx(1.5, rel=0.01)
    values = {choice.name: choice.value for choice in orpo.options}
    assert (values["beta"], values["learning_rate"], values["n_epochs"]) == (0.1, 8e-5, 1)


def test_the_range_of_the_learning_rate_is_that_of_the_method() -> None:
    def warned(method: str, rate: float) -> list[str]:
        found = planned(described("H200"), method, type="lora", learning_rate=rate).warnings
        return [one.message for one in found if one.code == "learning_rate_out_of_range"]

    assert not warned("supervised", 2e-4)
    assert "For lora by dpo it is from 1e-06 to 0.0001" in warned("dpo", 2e-4)[0]
    assert not warned("dpo", 5e-6)


def test_time_is_a_range_from_the_peak_of_the_card() -> None:
    times = {method.type: method.seconds for method in planned(described("H100")).methods}

    assert times["full"]
    assert times["lora"]
    assert 0 < times["lora"].least < times["lora"].most < times["full"].most


def earlier(job: str, seconds: float, tokens: int = 100_000, **changes: Any) -> Earlier:
    run = replace(Run("lora", "cpu", 4, 512, False, 16), **changes)
    return Earlier(job, run, Measured(device="cpu", seconds=seconds, tokens=tokens, length=512, peak_bytes=1))


def test_after_one_job_alike_time_is_known_within_a_tenth() -> None:
    run = Run("lora", "cpu", 4, 600, False, 16)
    found = predict_seconds(qwen2_7b(), run, Work(200_000), None, [earlier("ftjob-1", 50.0)])
    assert found is not None
    assert found.least < 100.0 < found.most
    assert (found.most - found.least) / 2 == pytest.approx(10.0, rel=0.1)
    assert found.basis.startswith(
        "the speed of ftjob-1, which trained this base here by the same method, with rows and steps alike"
    )
    assert found.basis.endswith(": 2000 tokens/s")


def test_a_job_of_another_method_says_nothing_of_the_time_and_one_with_other_rows_little() -> None:
    run = Run("lora", "cpu", 4, 4096, False, 16)
    assert predict_seconds(qwen2_7b(), run, Work(1000), None, [earlier("ftjob-1", 5.0, type="full")]) is None
    found = predict_seconds(qwen2_7b(), run, Work(100_000), None, [earlier("ftjob-1", 50.0)])
    assert found is not None
    assert "but with other lengths: " in found.basis
    assert found.most > 2 * found.least


def test_time_is_that_of_the_job_most_alike_and_then_of_the_newest() -> None:
    run = Run("lora", "cpu", 4, 512, False, 16)
    newer, older = earlier("ftjob-3", 30.0), earlier("ftjob-1", 10.0)
    found = predict_seconds(
        qwen2_7b(), run, Work(1000), None, [earlier("ftjob-4", 99.0, batch=1), newer, older]
    )
    assert found is not None
    assert "ftjob-3" in found.basis


def middle(found: TimeRange | None) -> float:
    assert found is not None
    return (found.least + found.most) / 2


def test_a_step_of_another_size_is_another_kind_since_the_optimizer_counts_once_a_step() -> None:
    run = Run("lora", "cpu", 4, 512, False, 16)
    before = earlier("ftjob-1", 50.0)
    before = replace(before, measured=before.measured.model_copy(update={"steps": 50}))
    alike, other = (
        predict_seconds(qwen2_7b(), run, Work(100_000, steps), None, [before]) for steps in (60, 200)
    )
    assert alike is not None
    assert other is not None
    assert "steps alike" in alike.basis
    assert "but with other steps" in other.basis
    assert other.most - other.least > 3 * (alike.most - alike.least)
    of_earlier_version = predict_seconds(qwen2_7b(), run, Work(1000, 10), None, [earlier("ftjob-0", 5.0)])
    assert of_earlier_version is not None
    assert "but with other steps" in of_earlier_version.basis, "how many it did is not known"


def test_padding_takes_time_too() -> None:
    run = Run("lora", "cpu", 4, 512, False, 16)
    before = earlier("ftjob-1", 50.0)
    before = replace(before, measured=before.measured.model_copy(update={"padding": 0.5}))
    padded, tight = (
        predict_seconds(qwen2_7b(), run, Work(100_000, padding=share), None, [before]) for share in (0.5, 0.2)
    )
    assert middle(padded) == pytest.approx(50.0)
    assert middle(tight) == pytest.approx(50.0 * 0.5 / 0.8)


def test_of_several_jobs_of_a_kind_the_middle_counts_and_how_far_they_differ_is_told() -> None:
    run = Run("lora", "cpu", 4, 512, False, 16)
    jobs = [earlier(f"ftjob-{n}", seconds) for n, seconds in enumerate((50.0, 80.0, 52.0))]
    found = predict_seconds(qwen2_7b(), run, Work(100_000), None, jobs)
    assert found is not None
    assert middle(found) == pytest.approx(52.0), "one was beside other work"
    assert (found.most - found.least) / 2 == pytest.approx(15.0)
    assert found.basis.startswith("the speed of ftjob-0 and 2 more")


def test_a_job_with_another_reference_is_another_kind() -> None:
    run = Run("lora", "cpu", 4, 512, False, 16, has_reference=True)
    found = predict_seconds(qwen2_7b(), run, Work(1000), None, [earlier("ftjob-1", 5.0)])
    assert found is not None
    assert "but with other method" in found.basis


@pytest.mark.parametrize(("method", "passes"), [("dpo", 1), ("kto", 2)])
def test_the_pass_of_the_reference_before_full_training_is_in_the_time(method: str, passes: int) -> None:
    """It computes every row once, forward; of kto also behind another prompt. An adapter's is a part of its steps."""
    resolved = {
        type: resolve(
            tuning=TuningOptions(type=type, n_epochs=2, batch_size=32),
            hyperparameters=HyperparameterOptions(),
            rows=5000,
            context=32768,
            max_rank=64,
            device="cuda",
            method=method,
        )
        for type in ("full", "lora")
    }
    full, lora = (work_of(one, DATA, 2 * DATA.tokens, DATA.tokens) for one in resolved.values())
    assert (full.reference_tokens, lora.reference_tokens) == (passes * DATA.tokens, 0)
    run = run_of(resolved["full"], DATA, "cuda")
    with_pass, steps = (
        predict_seconds(qwen2_7b(), run, work, 989) for work in (full, replace(full, reference_tokens=0))
    )
    backward = 3 + run.checkpointing + run.has_mismatched
    assert middle(with_pass) == pytest.approx(middle(steps) * (1 + passes / (2 * backward)))
    (of_plan,) = (
        one.seconds
        for one in planned(described("8xH200"), method, n_epochs=2, gradient_checkpointing=True).methods
        if one.type == "full"
    )
    assert middle(of_plan) == pytest.approx(middle(with_pass), rel=0.01)


def test_time_is_not_told_where_nothing_is_known() -> None:
    assert all(method.seconds is None for method in planned(Machine("?", "cpu", 1, 500 * GIB)).methods)


@pytest.mark.parametrize(
    ("text", "count", "gigabytes"),
    [
        ("8xA100-80GB", 8, 80),
        ("H100", 1, 80),
        ("2x RTX 4090", 2, 24),
        ("A100-40GB", 1, 40),
        ("4xh200", 4, 141),
    ],
)
def test_machines_are_described_in_a_few_words(text: str, count: int, gigabytes: int) -> None:
    machine = described(text)

    assert (machine.count, machine.memory) == (count, int(gigabytes * 1e9))


@pytest.mark.parametrize("text", ["", "8x", "XPU9000", "0xH100", "H100-9999GB"])
def test_unknown_machines_are_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(UnknownMachine):
        described(text)


def test_cards_are_known_by_the_drivers_names() -> None:
    assert card_of("NVIDIA A100-SXM4-80GB") == card_of("A100")
    assert card_of("NVIDIA GeForce RTX 4090") == card_of("RTX4090")
    assert card_of("NVIDIA L40S") == card_of("L40S")
    assert card_of("NVIDIA Nothing") is None


def test_a_rank_too_large_for_the_data_is_warned_of() -> None:
    assert "rank 8" in (rank_too_large(64, 500) or "")
    assert rank_too_large(16, 500) is None


@pytest.mark.parametrize(("type", "rate"), [("lora", 1e-2), ("lora", 1e-6), ("full", 2e-4), ("qlora", 5e-3)])
def test_a_rate_out_of_the_methods_range_is_warned_of(type: str, rate: float) -> None:
    assert "tuning.learning_rate" in (rate_out_of_range(type, rate) or "")


def test_the_default_rates_are_in_range() -> None:
    assert rate_out_of_range("lora", 2e-4) is rate_out_of_range("full", 2e-5) is None


def test_an_effective_batch_out_of_range_is_warned_of() -> None:
    assert batch_out_of_range(4, 1000)
    assert batch_out_of_range(512, 10_000)
    assert batch_out_of_range(32, 1000) is batch_out_of_range(4, 7) is None


def test_targets_that_miss_are_named_with_what_there_is_and_what_is_trained() -> None:
    text = targets_missed(qwen2_7b(), ["q_proj", "query"], 12345) or ""

    assert all(word in text for word in ("query", "v_proj", "12,345"))
    assert targets_missed(qwen2_7b(), "all-linear", 1) is None


def test_the_attention_that_is_used_instead_is_told() -> None:
    assert "scaled_dot_product_attention" in (attention_fallback("cuda", False) or "")
    assert attention_fallback("cuda", True) is attention_fallback("cpu", False) is None


def test_few_rows_and_rows_that_are_cut_are_told() -> None:
    assert few_rows(999)
    assert rows_cut(3, 10, 512)
    assert few_rows(1000) is rows_cut(0, 10, 512) is None


def occasional_long_rows() -> DataShape:
    return data_shape(1000, [(100, 50)] * 950 + [(4000, 50)] * 50)


def test_the_padding_of_batches_is_what_chance_gives() -> None:
    chance, lengths = random.Random(1), [100] * 950 + [2048] * 50
    batches = [chance.choices(lengths, k=8) for _ in range(4000)]
    padded, whole = sum(8 * max(batch) for batch in batches), sum(map(sum, batches))
    data = occasional_long_rows()
    assert data.padding(8, 2048) == pytest.approx(1 - whole / padded, rel=0.03)
    assert data.padding(1, 2048) == data_shape(9, [(64, 9)] * 9).padding(8, 2048) == 0


def test_batches_of_few_long_rows_among_short_ones_are_warned_of_until_they_are_grouped() -> None:
    def codes(**tuning: object) -> set[str]:
        options: dict[str, Any] = {"hyperparameters": HyperparameterOptions(), "max_rank": 64}
        asked = TuningOptions(type="lora", batch_size=32, **tuning)
        data = occasional_long_rows()
        plan = make_plan(qwen2_7b(), data, described("H200"), tuning=asked, **options)
        return {warning.code for warning in plan.warnings}

    assert codes() >= {"rows_padded", "rows_cut"}
    assert "rows_padded" not in codes(group_by_length=True) | codes(per_device_batch_size=1) | codes(
        max_length=128
    )
    assert "tuning.group_by_length true" in (rows_padded(0.5, False) or "")


def test_a_base_of_another_type_than_merges_are_written_in_is_told() -> None:
    other = replace(qwen2_7b(), dtype="F16")
    options: dict[str, Any] = {"hyperparameters": HyperparameterOptions(), "max_rank": 64}
    for type, expected in (("lora", True), ("qlora", True), ("full", False)):
        plan = make_plan(other, DATA, described("H200"), tuning=TuningOptions(type=type), **options)
        assert any(one.code == "merge_changes_type" for one in plan.warnings) is expected
    assert "F16" in (merge_changes_type("F16", "lora") or "")
    assert merge_changes_type("BF16", "lora") is None


def test_rows_are_read_beside_the_steps_of_a_gpu_alone() -> None:
    assert (workers_for("cuda", "linux"), workers_for("cpu", "linux")) == (2, 0)
    assert workers_for("cuda", "darwin") == workers_for("cuda", "win32") == 0, "no process is forked there"
    for asked, expected in (("auto", 2), (0, 0), (5, 5)):
        chosen = resolve(
            tuning=TuningOptions(dataloader_workers=asked), hyperparameters=HyperparameterOptions(), rows=99,
            context=64, max_rank=8, device="cuda",
        )  # fmt: skip
        assert chosen.dataloader_workers == expected


def test_steps_that_wait_for_their_rows_are_told_with_more_workers() -> None:
    assert "tuning.dataloader_workers 4" in (loader_blocks(2.0, 10.0, 2) or "")
    assert "tuning.dataloader_workers 2" in (loader_blocks(2.0, 10.0, 0) or "")
    assert loader_blocks(0.5, 10.0, 0) is None


def test_the_warnings_are_in_the_plan() -> None:
    odd = {"rank": 64, "learning_rate": 0.1, "batch_size": 4, "target_modules": ["query", "q_proj"]}
    plan = planned(described("H100"), type="lora", **odd)

    assert {warning.code for warning in plan.warnings} == {
        "rank_too_large", "learning_rate_out_of_range", "batch_out_of_range", "target_modules_missed",
    }  # fmt: skip


def test_a_prediction_is_of_all_epochs_and_counts_finished_jobs_of_its_device_alone() -> None:
    resolved = resolve(
        tuning=TuningOptions(type="lora", n_epochs=2, batch_size=32),
        hyperparameters=HyperparameterOptions(),
        rows=5000,
        context=32768,
        max_rank=64,
        device="cuda",
    )
    run = run_of(resolved, DATA, "cuda")
    here, elsewhere = (
        Earlier(f"job-{device}", run, Measured(device=device, seconds=10, tokens=10_000, length=1024, peak_bytes=1))
        for device in ("NVIDIA H200", "NVIDIA L4")
    )  # fmt: skip
    tokens = 2 * DATA.tokens
    known = predict(
        qwen2_7b(), resolved, DATA, tokens=tokens, device="NVIDIA H200", earlier=[elsewhere, here]
    )
    assert (known.steps, known.tokens) == (2 * 157, tokens)
    assert known.compiled, "ten million tokens are enough"
    assert known.peak_bytes == estimate(qwen2_7b(), run).allocated, "as torch counts it on a GPU"
    assert known.seconds is not None
    assert "job-NVIDIA H200" in known.seconds.basis
    assert known.seconds.least < tokens / 1000 < known.seconds.most
    by_peak = predict(qwen2_7b(), resolved, DATA, tokens=tokens, device="NVIDIA H200", earlier=[elsewhere])
    assert by_peak.seconds is not None
    assert "peak" in by_peak.seconds.basis
    on_cpu = predict(qwen2_7b(), resolved, DATA, tokens=tokens, device="cpu")
    assert on_cpu.seconds is None
    assert on_cpu.peak_bytes == estimate(qwen2_7b(), run_of(resolved, DATA, "cpu")).total, "what is resident"


def test_energy_and_price_are_those_of_the_time_where_a_rate_is_known() -> None:
    rates = Rates(price_per_hour=3.0, currency="EUR", watts=500)
    assert cost_of(7200, rates) == Cost(kwh=1.0, price=6.0, currency="EUR")
    assert cost_of(7200, Rates(), 350) == Cost(kwh=0.7), "by the card's datasheet"
    assert cost_of(7200, rates, 350) == Cost(kwh=1.0, price=6.0, currency="EUR"), "the operator knows better"
    assert cost_of(7200, Rates(price_per_hour=3.0)) == Cost(price=6.0, currency="USD")
    assert cost_of(7200, Rates()) is None
    assert cost_of(7200, rates).describe() == "1 kWh, 6.00 EUR"  # type: ignore[union-attr]


def test_a_plan_and_the_prediction_of_a_job_tell_what_their_time_costs() -> None:
    options: dict[str, Any] = {"hyperparameters": HyperparameterOptions(), "max_rank": 64}
    machine, rates = described("H200"), Rates(price_per_hour=2.0)
    plan = make_plan(qwen2_7b(), DATA, machine, tuning=TuningOptions(type="lora"), rates=rates, **options)
    for method in plan.methods:
        assert method.seconds is not None
        assert method.cost is not None
        assert method.cost.least.price == pytest.approx(2 * method.seconds.least / 3600)
        assert method.cost.most.kwh == pytest.approx(0.7 * method.seconds.most / 3600)
    cpu = make_plan(
        qwen2_7b(), DATA, Machine("CPU", "cpu", 1, 300 * GIB), tuning=TuningOptions(), rates=rates, **options
    )
    assert all(method.cost is None for method in cpu.methods), "its time is not known"
    resolved = resolve(
        tuning=TuningOptions(type="lora"), rows=5000, context=32768, device="cuda", **options
    )  # fmt: skip
    known = predict(qwen2_7b(), resolved, DATA, tokens=10**6, device="NVIDIA H200", rates=rates)
    assert known.cost is not None
    assert "USD" in known.describe()
