"""Jobs that ask for evaluations, through the whole service but for vLLM, whose scheduler is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from openai import OpenAI
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from kills import tree
from tunewright_client import Job, Tunewright

TUNING = {"rank": 4, "n_epochs": 3, "learning_rate": 5e-3, "batch_size": 8}


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
    evaluate: dict[str, Any] = {"data": file, "metrics": ["exact_match"], "select": "best"}
    limits = {"require": [{"metric": "exact_match", "max_drop": 0.1}]}
    with OpenAI(base_url=f"{service.url}/v1", api_key="none") as stock:
        created = stock.fine_tuning.jobs.create(
            model=BASE, training_file=file, extra_body={"tuning": TUNING, "evaluate": {**evaluate, **limits}}
        )
    first = client.jobs.retrieve(created.id)
    [base] = evaluations_of(client, first)
    assert client.evaluations.retrieve(base).model == BASE, "it is there before the job is queued"
    wait_until(lambda: len(evaluations_of(client, first)) > 1, 300, "the evaluation of a checkpoint")
    title = "tunewright: scheduler"
    (pid,) = (pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title))
    os.kill(pid, signal.SIGKILL)
    first = ended(client, first.id)

    assert (first.status, first.error) == ("succeeded", None)
    assert first.evaluation is not None
    points = first.evaluation.points
    assert [point.at for point in points] == ["before", "checkpoint", "checkpoint", "checkpoint", "end"]
    assert points[0].evaluation == base
    assert sorted(evaluations_of(client, first)) == sorted({point.evaluation or "" for point in points})
    assert [point.figures[0].value for point in points] == [0.5, 0, 0, 0, 0]
    assert {point.figures[0].gain for point in points[1:]} == {-0.5}
    assert {point.verdict for point in points[1:]} == {"fail"}
    last = first.fine_tuned_model or ""
    assert "ckpt" not in last, "none keeps the limit, so that it is the last one"
    assert (first.evaluation.model, first.evaluation.verdict) == (last, "fail")
    events = list(client.jobs.stream_events(first.id))
    told = [event for event in events if event.level == "warn" and last in event.message]
    assert "misses them: exact_match is worse than that of tiny by 0.5" in told[-1].message
    assert len([event for event in events if (event.data or {}).get("evaluation")]) == 5
    newest = next(iter(client.jobs.checkpoints(first.id)))
    assert newest.metrics.model_dump()["eval_exact_match_gain"] == -0.5
    [compared] = client.evaluations.retrieve(points[1].evaluation or "").against
    assert compared == BASE

    second = ended(client, client.jobs.create(BASE, file, tuning=TUNING, evaluate=evaluate, seed=2).id)

    assert second.evaluation is not None
    assert second.evaluation.verdict is None
    assert second.evaluation.points[0].status == "succeeded"
    assert "best of the" in (second.evaluation.why or "")
    step = second.evaluation.step
    assert step == second.evaluation.points[1].step, "all are as good, and the first has learnt least"
    assert (second.fine_tuned_model or "").endswith(f"ckpt-step-{step}")
    answer = client.chat.create(second.fine_tuned_model or "", [{"role": "user", "content": "Hi"}])
    assert (answer.choices[0].message.content or "").startswith("Arr!")
