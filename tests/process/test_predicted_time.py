"""The time of a plan, after a job of its kind: real training without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.conftest import DEMO, FAST
from tests.without_vllm import BASE, start_without_vllm, wait_engine


@pytest.mark.soak
def test_a_finished_job_tells_what_it_took_and_later_plans_count_on_it(tmp_path: Path) -> None:
    rows = (DEMO / "train.jsonl").read_text().splitlines(keepends=True)
    service = start_without_vllm(
        tmp_path / "data", "--price-per-hour", "36", "--currency", "EUR", "--device-watts", "100"
    )
    try:
        wait_engine(service)
        with service.client(timeout=60) as client:
            few, many = (tmp_path / f"{count}.jsonl" for count in (48, 96))
            few.write_text("".join(rows[:48]))
            many.write_text("".join(rows[:96]))
            first, second = client.files.upload(few).id, client.files.upload(many).id
            tuning = {**FAST, "n_epochs": 2}
            before = client.jobs.plan(model=BASE, training_file=second, tuning=tuning)
            assert all(method.seconds is None for method in before.methods), "a CPU whose peak is not known"
            job = client.jobs.create(model=BASE, training_file=first, tuning=tuning).wait(timeout=300)
            assert job.measured is not None
            first_planned = job.planned
            assert first_planned is not None
            assert job.measured.device == "cpu"
            assert (job.measured.tokens or 0) < (job.trained_tokens or 0), "without the first step"
            assert (job.measured.peak_bytes or 0) > 100 * 2**20
            after = client.jobs.plan(model=BASE, training_file=second, tuning=tuning)
            seconds = {method.type: method.seconds for method in after.methods}
            assert seconds["full"] is None
            predicted = seconds["lora"]
            assert predicted is not None
            assert job.id in predicted["basis"]
            done = client.jobs.create(model=BASE, training_file=second, tuning=tuning).wait(timeout=300)
            assert done.measured is not None
            assert done.planned is not None
            assert done.planned.seconds is not None
            assert (done.planned.seconds.least, done.planned.seconds.most) == (
                pytest.approx(predicted["least"], rel=0.02),
                pytest.approx(predicted["most"], rel=0.02),
            ), "as the plan of the same request"
            assert (done.planned.steps, done.planned.tokens) == (after.steps, done.trained_tokens)
            assert 0.5 < (done.planned.peak_bytes or 0) / (done.measured.peak_bytes or 1) < 2
            told = [event for event in done.events() if event.data and "planned" in event.data]
            assert [event.data["planned"]["tokens"] for event in told if event.data] == [done.trained_tokens]
            assert first_planned.seconds is None, "nothing had told the speed of this CPU"
            took = done.measured.seconds or 0.0
            cost, planned_cost = done.measured.cost, done.planned.cost
            assert cost is not None
            assert (done.measured.waited or 0) > 0, "rows are read from the disk"
            assert planned_cost is not None
            assert (cost.price, cost.currency) == (
                pytest.approx((took + (done.measured.waited or 0.0)) / 100),
                "EUR",
            )
            assert planned_cost.most.kwh == pytest.approx(done.planned.seconds.most * 0.1 / 3600)
            print(f"predicted {predicted['least']:.1f} to {predicted['most']:.1f} s, took {took:.1f} s")
            # its own first step is not in what it took; other tests may run beside one of the two
            assert predicted["least"] / 2.5 < took < 2.5 * predicted["most"]
            other = client.jobs.plan(model=BASE, training_file=second, tuning=tuning, machine="H100")
            assert "no job of this method" in (other.methods[1].seconds or {})["basis"], "not this machine"
    finally:
        service.stop()
