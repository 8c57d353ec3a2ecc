"""Syntheses by the whole service with a stand-in for vLLM, which answers the same to everything: a killed one, one that
is paused and cancelled, and what its answers are counted as."""

from __future__ import annotations

import json
import os
import signal

import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from kills import tree
from tunewright_client import JobCancelledError, JobFailedError, Synthesis, Tunewright


def prompts(count: int, mark: str = "") -> bytes:
    rows = [
        {"messages": [{"role": "user", "content": f"{mark}{n} + 1 ="}, {"role": "assistant", "content": "?"}]}
        for n in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def running(service: Service, synthesis: Synthesis) -> int:
    """The process of a synthesis, once it has answers."""
    title = f"tunewright: synthesis {synthesis.id}"
    found: list[int] = []

    def has_started() -> bool:  # seen before it has answers: with all of them it soon ends
        found[:] = [pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title)]
        return bool(found)

    wait_until(has_started, 60, "its process")
    answers = service.data_dir / "jobs" / synthesis.id / "work" / "answers.jsonl"
    wait_until(lambda: answers.exists() and answers.stat().st_size > 0, 60, "answers")
    (pid,) = found
    return pid


def test_killed_in_the_middle_it_makes_the_same_file(service: Service, client: Tunewright) -> None:
    file = client.files.upload(prompts(200), filename="prompts.jsonl").id
    undisturbed = client.syntheses.create(BASE, file, "answers").wait(timeout=240)
    disturbed = client.syntheses.create(BASE, file, "answers", metadata={"n": "2"})
    os.kill(running(service, disturbed), signal.SIGKILL)
    disturbed = disturbed.wait(timeout=240)
    first, second = (client.files.retrieve(one.made_file or "") for one in (undisturbed, disturbed))
    content = client.files.content(first.id)
    assert client.files.content(second.id) == content
    assert disturbed.report == undisturbed.report
    assert undisturbed.report is not None
    assert (undisturbed.report.rows_made, undisturbed.dropped_file) == (200, None)
    told = [event.message for event in client.syntheses.events(disturbed.id)]
    assert "The synthesizer ended with signal 9; starting it again from its last answer" in told
    assert second.lineage is not None
    assert (second.lineage.synthesis, second.lineage.teacher) == (disturbed.id, BASE)
    assert second.lineage.teacher_content == (disturbed.teacher and disturbed.teacher.content)


@pytest.mark.soak
def test_paused_it_keeps_its_answers_and_cancelled_it_leaves_no_file(
    service: Service, client: Tunewright
) -> None:
    file = client.files.upload(prompts(1_000, "x"), filename="prompts.jsonl").id
    before = {one.id for one in client.files.list()}
    synthesis = client.syntheses.create(
        BASE, file, {"type": "answers", "n": 40}
    )  # more than it gets in the test
    running(service, synthesis)
    synthesis.pause()
    wait_until(lambda: synthesis.refresh().status == "paused", 60, "paused")
    synthesis.resume()
    wait_until(
        lambda: any("answers are there already" in one.message for one in synthesis.events()),
        60,
        "it goes on",
    )
    synthesis.cancel()
    with pytest.raises(JobCancelledError):
        synthesis.wait(timeout=240)
    assert {one.id for one in client.files.list()} == before
    nothing = client.syntheses.create(BASE, file, "paraphrases", rows=5)
    with pytest.raises(JobFailedError, match=r"no row could be made by 5 requests: 5 invalid_json") as failed:
        nothing.wait(timeout=240)
    assert failed.value.code == "nothing_made"
