"""Jobs that ask for evaluations, through the whole service but for vLLM, whose scheduler is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from openai import OpenAI
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from kills import tree
from tunewright_client import Job, Tunewright

TUNING = {"rank": 4, "n_epochs": 2, "learning_rate": 5e-3, "batch_size": 8}


def rows_file(folder: Path) -> Path:
    """The base is right in every second row, and an adapter never."""
    found = [{"prompt": f"{n}", "completion": "Arr!" if n % 2 else "no"} for n in range(40)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def ended(client: Tunewright, id: str) -> Job:
    return wait_until(lambda: (now := client.jobs.retrieve(id)).is_final and now, 300, "its end")


def evaluations_of(client: Tunewright, job: Job) -> list[str]:
    return [one.id for one in client.evaluations.list(limit=100) if one.job == job.id]


def test_a_job_asks_for_its_evaluations_and_its_model_is_the_best_checkpoint(
    service: Service, tmp_path: Path
) -> None:
    client = Tunewright(service.url)
    file = client.files.upload(rows_file(tmp_path)).id
    limits = [{"metric": "exact_match", "max_drop": 0.4}]
    evaluate = {"data": file, "metrics": ["exact_match"], "select": "best", "require": limits}
    with OpenAI(base_url=f"{service.url}/v1", api_key="none") as stock:
        created = stock.fine_tuning.jobs.create(
            model=BASE, training_file=file, extra_body={"tuning": TUNING, "evaluate": evaluate}
        )
    job = client.jobs.retrieve(created.id)
    [base] = evaluations_of(client, job)
    assert client.evaluations.retrieve(base).model == BASE, "it is there before the job is queued"
    wait_until(lambda: len(evaluations_of(client, job)) > 1, 300, "the evaluation of a checkpoint")
    title = "tunewright: scheduler"
    (pid,) = (pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title))
    os.kill(pid, signal.SIGKILL)
    job = ended(client, job.id)

    assert (job.status, job.error) == ("succeeded", None)
    assert job.evaluation is not None
    points = job.evaluation.points
    assert [point.at for point in points] == ["before", "checkpoint", "checkpoint", "end"]
    assert points[0].evaluation == base
    assert points[3].evaluation == points[2].evaluation, "the last state is the checkpoint at its step"
    assert sorted(evaluations_of(client, job)) == sorted({point.evaluation or "" for point in points})
    assert [point.figures[0].value for point in points] == [0.5, 0, 0, 0]
    assert {point.figures[0].gain for point in points[1:]} == {-0.5}
    assert {point.verdict for point in points[1:]} == {"not_enough_data"}
    step = points[1].step
    assert (job.evaluation.step, job.evaluation.verdict) == (step, "not_enough_data")
    assert "of which the rows do not tell" in (job.evaluation.why or "")
    assert (job.fine_tuned_model or "").endswith(f"ckpt-step-{step}"), "of equal ones the earliest"
    events = list(client.jobs.stream_events(job.id))
    assert len([event for event in events if (event.data or {}).get("evaluation")]) == 4, "each is told once"
    assert f"The model of the job is {job.fine_tuned_model}" in [event.message for event in events][-3]
    newest = next(iter(client.jobs.checkpoints(job.id)))
    assert newest.metrics.model_dump()["eval_exact_match_gain"] == -0.5
    evaluation = client.evaluations.retrieve(points[1].evaluation or "")
    assert (evaluation.against, evaluation.job) == ([BASE], job.id)
    told = [event.message for event in evaluation.events(limit=100)]
    assert "40 of 80 answers are there already" in told, "the base is not asked again"
    answer = client.chat.create(job.fine_tuned_model or "", [{"role": "user", "content": "Hi"}])
    assert (answer.choices[0].message.content or "").startswith("Arr!")
