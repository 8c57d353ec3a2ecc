"""Jobs end to end: tuning types, parents, templates, the queue, cancelling, and their events."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import DEMO, FAST, Service, wait_until
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import BadRequestError, Job, JobFailedError, Tunewright

QUESTION = "What color is the sky?"


def test_a_job_tells_all_of_itself(client: Tunewright, service: Service, pirate: Job) -> None:
    tuning = pirate.tuning.model_dump() if hasattr(pirate.tuning, "model_dump") else dict(pirate.tuning)
    assert "auto" not in tuning.values()
    assert (tuning["rank"], tuning["alpha"], tuning["target_modules"]) == (16, 32.0, "all-linear")
    assert (tuning["lr_scheduler_type"], tuning["warmup_ratio"], tuning["max_grad_norm"]) == (
        "cosine",
        0.03,
        1.0,
    )
    assert (tuning["batch_size"], tuning["max_length"]) == (16, 1024)
    events = list(client.jobs.stream_events(pirate.id))
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [m["step"] for m in metrics] == list(range(1, 31))
    wanted = {
        "step", "total_steps", "train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm",
        "tokens_per_second", "memory_bytes", "eta_seconds",
    }  # fmt: skip
    assert all(wanted <= m.keys() for m in metrics)
    held_out = [m["valid_loss"] for m in metrics if "valid_loss" in m]
    before = next(event.data for event in events if (event.data or {}).get("step") == 0)
    assert len(held_out) == 2, "at the end of each epoch"
    assert held_out[-1] < 0.1 < 1 < before["valid_loss"]
    assert metrics[-1]["valid_mean_token_accuracy"] > 0.95
    assert max(m["learning_rate"] for m in metrics) == pytest.approx(3e-3, rel=0.05)
    assert "TrainerState" in client.jobs.logs(pirate.id) or len(client.jobs.logs(pirate.id)) > 200
    assert pirate.metadata == {"team": "tests"}


def test_the_held_out_loss_is_the_model_s_own(client: Tunewright, service: Service, pirate: Job) -> None:
    """The reported loss before training against transformers on the same rows, token by token."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    model = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    total = count = 0.0
    for line in (DEMO / "validation.jsonl").open():
        row = tokenizer.apply_chat_template(
            json.loads(line)["messages"],
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
        )
        ids, mask = row["input_ids"][0], torch.as_tensor(row["assistant_masks"]).flatten().bool()
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        picked = logprobs.gather(1, ids[1:, None])[:, 0][mask[1:]]
        total, count = total - float(picked.sum()), count + len(picked)
    events = client.jobs.stream_events(pirate.id)
    reported = next(event.data["valid_loss"] for event in events if (event.data or {}).get("step") == 0)
    assert reported == pytest.approx(total / count, rel=1e-4)


def test_qlora_trains_on_nf4_and_serves_on_the_16_bit_base(
    client: Tunewright, small_file: str, ask: Callable[[str, str], str]
) -> None:
    tuning = {**FAST, "type": "qlora", "n_epochs": 6, "batch_size": 8}
    job = client.jobs.create(model=EMBEDDED_BASE, training_file=small_file, seed=7, tuning=tuning).wait(
        timeout=240
    )
    assert client.adapters.retrieve(job.fine_tuned_model or "").method == "qlora"
    assert ask(job.fine_tuned_model or "", QUESTION).startswith("Arr!")


def test_full_fine_tuning_is_listed_downloaded_and_trained_on(
    client: Tunewright, small_file: str, tmp_path: Path
) -> None:
    options = {"type": "full", "learning_rate": 1e-3, "n_epochs": 4, "batch_size": 8}
    job = client.jobs.create(model=EMBEDDED_BASE, training_file=small_file, seed=7, tuning=options).wait(
        timeout=240
    )
    name = job.fine_tuned_model or ""
    assert name in [model.id for model in client.models.list()]
    with pytest.raises(BadRequestError, match="download"):
        client.completions.create(model=name, prompt="x")
    with tarfile.open(client.models.download(name, tmp_path / "model.tar")) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype is torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0])
    assert "Arr!" in answer
    more = client.jobs.create(model=name, training_file=small_file, tuning={"type": "full", "n_epochs": 1})
    assert more.wait(timeout=120).status == "succeeded"


@pytest.mark.soak
def test_training_goes_on_from_a_finished_adapter(
    client: Tunewright, pirate: Job, demo_files: tuple[str, str]
) -> None:
    """The job's first held-out loss is the parent's last one, and its adapter has the parent's shape."""
    job = client.jobs.create(
        model=pirate.fine_tuned_model or "",
        training_file=demo_files[0],
        validation_file=demo_files[1],
        tuning={"n_epochs": 1, "learning_rate": 1e-5},
    ).wait(timeout=120)
    evaluations = [e.data for e in client.jobs.stream_events(job.id) if "valid_loss" in (e.data or {})]
    parent = [e.data for e in client.jobs.stream_events(pirate.id) if "valid_loss" in (e.data or {})]
    assert evaluations[0]["valid_loss"] == pytest.approx(parent[-1]["valid_loss"], rel=1e-3)
    assert client.adapters.retrieve(job.fine_tuned_model or "").rank == 16
    with pytest.raises(BadRequestError, match="rank 16"):
        client.jobs.create(
            model=pirate.fine_tuned_model or "", training_file=demo_files[0], tuning={"rank": 8}
        )


@pytest.mark.soak
def test_a_base_without_a_template(
    client: Tunewright, small_file: str, tmp_path: Path, ask: Callable[[str, str], str]
) -> None:
    """Chat data is refused clearly; text data trains; a template in the request trains and then serves."""
    with pytest.raises(JobFailedError, match="no chat template"):
        client.jobs.create(model="plain", training_file=small_file).wait(timeout=60)
    rows = [{"prompt": f"{n} and one is", "completion": f" {n + 1} indeed"} for n in range(64)]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuning = {"n_epochs": 6, "learning_rate": 5e-3, "batch_size": 16}
    job = client.jobs.create(model="plain", training_file=text, seed=7, tuning=tuning).wait(timeout=240)
    answer = client.completions.create(
        model=job.fine_tuned_model or "", prompt="7 and one is", temperature=0, max_tokens=12
    )
    assert answer.text.rstrip().endswith("indeed")
    with pytest.raises(BadRequestError, match="no chat template"):
        ask(job.fine_tuned_model or "", "no template, no chat")

    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}{{ eos_token }}\n"
        "{% else %}Q: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join((DEMO / "train.jsonl").open().readlines()[:112]))
    job = client.jobs.create(
        model="plain",
        training_file=chats,
        chat_template=template,
        tuning={**FAST, "n_epochs": 3},
        suffix="templated",
        seed=7,
    ).wait(timeout=240)
    answered = ask(job.fine_tuned_model or "", QUESTION)
    assert answered.startswith("Arr!"), answered
    assert answered.endswith("matey!"), answered


def test_a_job_on_bad_data_is_refused_with_the_line(client: Tunewright, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]}\n{"a": 1}\n'
    )
    with pytest.raises(BadRequestError, match="line 2") as refused:
        client.jobs.create(model=EMBEDDED_BASE, training_file=path)
    assert (refused.value.code, refused.value.param) == ("invalid_training_file", "training_file")


def test_jobs_queue_and_are_cancelled_in_every_state(
    client: Tunewright, service: Service, small_file: str
) -> None:
    def submit(epochs: int, suffix: str) -> Job:
        return client.jobs.create(
            model=EMBEDDED_BASE, training_file=small_file, suffix=suffix, tuning={"n_epochs": epochs}
        )

    first, second, third = submit(300, "first"), submit(1, "second"), submit(1, "third")
    try:
        wait_until(lambda: client.jobs.retrieve(first.id).progress, 60, "the first job makes steps")
        assert [client.jobs.retrieve(j.id).status for j in (second, third)] == ["queued", "queued"]
        assert client.jobs.cancel(third.id).status == "cancelled"
    finally:  # it would hold up the tests after this one
        began = time.monotonic()
        cancelled = client.jobs.cancel(first.id)
    assert cancelled.status == "cancelled"
    wait_until(lambda: not _trainers(first.id), 10, "its trainer is gone")
    print(f"trainer gone {time.monotonic() - began:.2f} s after the cancel")
    assert client.jobs.wait(second.id, timeout=120).status == "succeeded"
    for job in (first, second, third):
        with pytest.raises(BadRequestError) as refused:
            client.jobs.cancel(job.id)
        assert refused.value.code == "job_not_cancellable"
    assert not [m.id for m in client.models.list() if "first" in m.id or "third" in m.id]
    folder = service.data_dir / "jobs" / first.id
    assert not (folder / "checkpoints").exists(), "a cancelled job keeps no checkpoints"


@pytest.mark.soak
def test_a_paused_job_frees_its_device_and_goes_on_where_it_stopped(
    client: Tunewright, small_file: str
) -> None:
    """32 rows, 4 steps an epoch: every step is reported once, also over the pause."""
    tuning = {"n_epochs": 12, "batch_size": 8, "rank": 8}
    job = client.jobs.create(model=EMBEDDED_BASE, training_file=small_file, suffix="paused", tuning=tuning)
    wait_until(lambda: (p := client.jobs.retrieve(job.id).progress) and p.step >= 5, 60, "steps")
    assert client.jobs.pause(job.id).status in ("pausing", "paused")
    wait_until(lambda: client.jobs.retrieve(job.id).status == "paused", 30, "it is paused")
    assert not _trainers(job.id)
    assert client.jobs.pause(job.id).status == "paused", "asking again changes nothing"
    other = client.jobs.create(model=EMBEDDED_BASE, training_file=small_file, tuning={"n_epochs": 1})
    assert client.jobs.wait(other.id, timeout=120).status == "succeeded", "the device is free"
    assert client.jobs.retrieve(job.id).status == "paused"
    assert client.jobs.resume(job.id).status == "queued"
    assert client.jobs.wait(job.id, timeout=240).status == "succeeded"
    steps = [e.data["step"] for e in client.jobs.stream_events(job.id) if e.type == "metrics"]
    assert steps == list(range(1, 49))
    for refused in (client.jobs.pause, client.jobs.resume):
        with pytest.raises(BadRequestError):
            refused(job.id)


def _trainers(job_id: str) -> bytes:
    return subprocess.run(["pgrep", "-f", f"tunewright: trainer {job_id}"], capture_output=True).stdout


def test_the_same_key_makes_one_job(client: Tunewright, small_file: str) -> None:
    jobs = [
        client.jobs.create(
            model=EMBEDDED_BASE, training_file=small_file, idempotency_key="once", tuning={"n_epochs": 300}
        )
        for _ in range(3)
    ]
    assert len({job.id for job in jobs}) == 1
    with pytest.raises(BadRequestError) as refused:
        client.jobs.create(
            model=EMBEDDED_BASE, training_file=small_file, idempotency_key="once", suffix="other"
        )
    assert refused.value.code == "idempotency_key_reused"
    client.jobs.cancel(jobs[0].id)
