"""A trainer whose grader asks models for scores: what it asks, what it does where they do not answer, and when it is
started again."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from test_engine_sampling import STORIES, Gateway, codes, gateway, refusal  # noqa: F401

from graded import NEAR, graded_folder, graded_trainer
from tunewright.jobs import asking
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import JobFolder
from tunewright.trainer import scores as module
from tunewright.trainer.spec import TrainingSpec

JUDGE = {
    "type": "score_model", "name": "judge", "model": "an-alias", "range": [0, 10],
    "input": [{"role": "user", "content": "How good is {{ sample.output_text }} for {{ item.answer }}?"}],
    "sampling_params": {"temperature": 1.0},
}  # fmt: skip
BOTH = {
    "type": "multi", "name": "both", "graders": {"near": NEAR, "judge": JUDGE, "again": {**JUDGE, "range": [0, 1]}},
    "calculate_output": "near + judge + again",
}  # fmt: skip


def score_of(asked: dict[str, Any], of: float = 1.0) -> float:
    text = asked["body"]["messages"][0]["content"]
    return hashlib.sha256(text.encode()).digest()[0] / 256 * of


def completion(content: Any) -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": content}
    return 200, {"choices": [{"message": message}], "usage": {"total_tokens": 7}}


def scored(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return completion(json.dumps({"result": score_of(asked)}))


def folder_of(path: Path, gateway: Gateway, grader: Any = BOTH) -> JobFolder:  # noqa: F811
    """A job of three steps, each of two prompts with two answers."""
    model = {"name": "m", "content": "c" * 64, "at_once": 3}
    how = {
        "socket": str(gateway.socket), "project": "mine", "key": "key-1", "request_timeout": 30,
        "by_grader": {"judge": model, "again": model},
    }  # fmt: skip
    return graded_folder(
        path / "job",
        STORIES,
        n_epochs=1,
        batch_size=2,
        num_generations=2,
        spec={"grader": grader, "grading_models": how},
    )


def trained(folder: JobFolder) -> list[dict[str, float]]:
    trainer = graded_trainer(folder)
    trainer.train()
    names = ("loss", "reward", "grad_norm", "grader_errors", "graders/judge", "graders/again")
    logs = [step for step in trainer.state.log_history if "loss" in step]
    return [{name: step[name] for name in names if name in step} for step in logs]


def test_the_models_that_a_grader_names_are_asked_several_at_a_time(
    tmp_path: Path,
    gateway: Gateway,  # noqa: F811
) -> None:
    gateway.model = scored
    folder = folder_of(tmp_path / "first", gateway)
    steps = trained(folder)
    assert len(steps) == 3
    assert all(step["grader_errors"] == 0 for step in steps)
    assert all(step["graders/judge"] == step["graders/again"] > 0 for step in steps)
    assert any(step["grad_norm"] > 0 for step in steps)

    asked = list(gateway.asked_of_models)
    bodies = [json.dumps(one["body"], sort_keys=True) for one in asked]
    texts = [one["body"]["messages"][0]["content"] for one in asked]
    assert len(set(bodies)) == len(bodies), "what is the same in a step is asked once"
    assert len(set(texts)) == len(texts) / 2 <= 12, "by two graders"
    assert max(one["at_once"] for one in asked) == 3
    first = asked[0]
    assert (first["model"], first["content"], first["path"]) == ("m", "c" * 64, "/v1/chat/completions")
    headers = {name.lower(): value for name, value in first["headers"].items()}
    told = [headers[f"x-tunewright-{name}"] for name in ("project", "key", "source")]
    assert told == ["mine", "key-1", "grader"]
    body = first["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 1.0, 256)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["result"]
    assert len({one["body"]["seed"] for one in asked}) == len(asked), "each has a seed of its own"

    # A trainer that is started again has the scores of the steps that it repeats, whatever the models would say now.
    gateway.model = refusal(400)
    [kept] = folder.scores.iterdir()
    kept.write_bytes(kept.read_bytes() + b'[2, "ab')  # as a kill may leave it
    assert trained(folder) == steps
    assert len(gateway.asked_of_models) == len(asked)
    gateway.model = scored
    assert trained(folder_of(tmp_path / "again", gateway)) == steps
    assert sorted(bodies) == sorted(
        json.dumps(one["body"], sort_keys=True) for one in gateway.asked_of_models[len(asked) :]
    )


def test_an_answer_that_has_no_score_is_counted_and_has_the_reward_0(
    tmp_path: Path,
    gateway: Gateway,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.001)
    answers = [
        completion('{"result": 11}'),
        completion("good"),
        refusal(400)({}),
        refusal(500)({}),
        refusal(500)({}),
    ]
    calls: dict[str, int] = {}
    failing: list[str] = []

    def judge(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = asked["body"]["messages"][0]["content"]
        if text not in calls and len(failing) < len(answers) - 1 and len(calls) % 2:
            failing.append(text)
        calls[text] = calls.get(text, 0) + 1
        if text in failing:
            return answers[failing.index(text)]
        if calls[text] <= 3:  # its engine is restarted
            return refusal(503)(asked)
        return completion(json.dumps({"result": 4}))

    gateway.model = judge
    folder = folder_of(tmp_path, gateway, JUDGE)
    steps = trained(folder)
    assert sum(step["grader_errors"] for step in steps) >= len(answers[:-1]) / 4
    assert all(step["reward"] == pytest.approx(4 * (1 - step["grader_errors"])) for step in steps)
    assert [calls[text] for text in failing] == [1, 1, 1, 5]
    assert all(number == 4 for text, number in calls.items() if text not in failing)
    assert set(codes(folder)) == {"grader_errors"}
    told = " ".join(event["message"] for event in folder.read_events(0)[0])
    assert "model_grader_parse_error" in told
    assert "no score from 0 to 10" in told
    assert "model_grader_server_error" in told


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (completion("good"), "grader_failed"),
        ((404, {"error": {"message": "It is gone.", "code": "model_not_found"}}), "model_not_found"),
        ((400, {"error": {"message": "It has changed.", "code": "model_changed"}}), "model_changed"),
        (refusal(503)({}), "engine_unavailable"),
    ],
)
def test_a_job_whose_models_cannot_grade_at_all_fails(
    tmp_path: Path,
    gateway: Gateway,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    code: str,
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(asking, "PATIENCE", 0.1)
    gateway.model = lambda _: answer
    with pytest.raises(TrainingFailed) as failed:
        trained(folder_of(tmp_path, gateway, JUDGE))
    assert failed.value.code == code


def test_a_job_that_is_to_stop_does_not_wait_for_a_silent_model(
    tmp_path: Path,
    gateway: Gateway,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tunewright.jobs.folder import EventLog
    from tunewright.trainer.run import METHODS
    from tunewright.trainer.training import train

    monkeypatch.setattr(module, "_BEAT", 0.05)
    monkeypatch.setattr(module, "_STOPS_AFTER", 0.2)
    is_asked = threading.Event()

    def silent(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(gateway.asked_of_models) > 6:
            is_asked.set()
            return refusal(503)(asked)
        return scored(asked)

    gateway.model = silent
    from tunewright.trainer.loop import CheckpointCallback

    monkeypatch.setattr(CheckpointCallback, "is_asked_to_stop", property(lambda _: is_asked.is_set()))
    folder = folder_of(tmp_path, gateway, JUDGE)
    assert train(folder, folder.read_spec(TrainingSpec), EventLog(folder), METHODS["reinforcement"]) is None
    assert "done again" in folder.read_events(0)[0][-1]["message"]
    before = len(list(folder.scores.glob("*"))), (folder.scores / "0.jsonl").read_bytes().count(b"\n")
    assert before[0] == 1
    assert before[1] > 0, "what was answered is kept"
