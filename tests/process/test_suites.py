"""Evaluations by suites with a stand-in for the gateway: choices, numbers, programs, shared answers, a killed one."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_evaluator import Gateway, Run

from suites import HUMANEVAL, write_lines, write_suites
from tunewright.evaluator.folder import Asked, AskedSuite, Evaluated, EvaluationSpec, results_file
from tunewright.evaluator.report import EvaluationReport
from tunewright.metrics.verdicts import Verdict

CONTEXT = 300
"""Characters, which are the stand-in's tokens."""


class Models:
    """Two models: `base` always has the letter B for the likeliest, and `new` that of the question's length."""

    def __call__(self, model: str, body: dict[str, Any]) -> Any:
        prompt = body["prompt"]
        if "max_tokens" not in body:
            return {"tokens": [ord(letter) for letter in prompt]}
        prompts = prompt if isinstance(prompt, list) else [prompt]
        if max(map(len, prompts)) > CONTEXT:
            return 400, "context_length_exceeded"
        if isinstance(prompt, list):
            choices = [self._scored(model, number, one) for number, one in enumerate(prompts)]
            return {"choices": choices[::-1]}  # in no order
        if "n" in body:
            texts = [f"    return a {'+-'[number % 2]} b\n" for number in range(body["n"])]
        else:
            texts = [f"it is {3 if model == 'base' else 4}"]
        return {
            "choices": [
                {"index": number, "text": text, "finish_reason": "stop"} for number, text in enumerate(texts)
            ]
        }

    def _scored(self, model: str, number: int, tokens: list[int]) -> dict[str, Any]:
        likeliest = "B" if model == "base" else "ABCD"[len(tokens) % 4]
        places: list[Any] = [None]
        for token in tokens[1:]:
            chance = 0.9 if chr(token) == likeliest else 0.01
            places.append({str(token): {"logprob": math.log(chance), "rank": 1}})
        return {"index": number, "prompt_logprobs": places, "text": ""}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "g.sock")
    made.answer = Models()
    yield made
    made.close()


class Suites:
    def __init__(self, folder: Path, gateway: Gateway) -> None:
        self.folder, self._gateway, self._count = folder, gateway, 0
        self.data = write_suites(folder / "suites")

    def run(self, name: Any, *, cache: Path | None = None, **fields: Any) -> Run:
        self._count += 1
        suite = {key: fields.pop(key) for key in ("shots", "samples", "python") if key in fields}
        models = [
            Asked(name="new", content="1", at_once=4),
            Asked(name="base", content="2", at_once=3, cache=str(cache) if cache else None),
        ]
        spec = {
            "job_id": "eval-1", "socket": str(self._gateway.socket), "request_timeout": 60, "models": models,
            "file": None, "suite": AskedSuite(name=name, data=str(self.data), **suite), "seed": 5,
            "max_tokens": 9, "memory_bytes": 2**31,
        }  # fmt: skip
        folder = self.folder / f"job{self._count}"
        return Run(folder, EvaluationSpec.model_validate({**spec, **fields}))


@pytest.fixture
def suites(tmp_path: Path, gateway: Gateway) -> Suites:
    return Suites(tmp_path, gateway)


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results_file(run.folder).read_text().splitlines()]


def test_the_likeliest_letter_is_the_answer(suites: Suites, gateway: Gateway) -> None:
    run = suites.run("mmlu", shots=1)

    report = run.report()

    assert (report.rows, report.rows_in_file) == (3, 3)
    assert (report.metrics, report.why) == (["accuracy"], "the suite mmlu")
    found = lines(run)
    assert [line["answers"][1]["answer"] for line in found] == ["B", "B", "B"]
    asked = [one["body"]["prompt"] for one in gateway.asked if isinstance(one["body"]["prompt"], list)]
    assert all(len(prompts) == 4 for prompts in asked)
    lengths = [len(prompts[0]) for prompts in asked[:3]]
    assert sorted(line["answers"][0]["answer"] for line in found) == sorted(
        "ABCD"[length % 4] for length in lengths
    )
    accuracy = report.models[1].figures[0]
    assert (accuracy.value, accuracy.interval) == (pytest.approx(1 / 3), "wilson")
    assert report.judgement is not None
    [reason] = report.judgement.reasons
    assert (reason.name, reason.verdict) == ("forgetting", Verdict.NOT_ENOUGH_DATA)


def test_so_many_questions_are_drawn_and_told(suites: Suites) -> None:
    run = suites.run("mmlu", rows=2)

    report = run.report()

    assert (report.rows, report.rows_in_file) == (2, 3)
    assert [line["row"] for line in lines(run)] == sorted(line["row"] for line in lines(run))


def test_examples_for_which_the_context_has_no_room_are_left_out(suites: Suites, gateway: Gateway) -> None:
    report = suites.run("mmlu", shots=3).report()

    assert [model.unanswered for model in report.models] == [0, 0]
    asked = [one["body"]["prompt"] for one in gateway.asked if isinstance(one["body"]["prompt"], list)]
    assert any(len(prompts[0]) > CONTEXT for prompts in asked)
    assert any(len(prompts[0]) <= CONTEXT for prompts in asked)


def test_the_last_number_is_the_answer(suites: Suites, gateway: Gateway) -> None:
    run = suites.run("gsm8k")

    report = run.report()

    assert [model.figures[0].value for model in report.models] == [0.0, 0.5]
    body = gateway.asked[0]["body"]
    assert body["stop"] == ["Question:", "</s>", "<|im_end|>"]
    assert (body["temperature"], body["prompt"].count("Question: ")) == (0, 4)
    assert [line["answers"][1]["answer"] for line in lines(run)] == ["it is 3", "it is 3"]


def test_programs_are_run_and_pass_at_k_is_told(suites: Suites, gateway: Gateway) -> None:
    run = suites.run("humaneval", samples=10, python="sandboxed", temperature=0.8)

    report = run.report()

    assert report.metrics == ["pass_at_1", "pass_at_10"]
    assert [figure.value for figure in report.models[0].figures] == [0.5, 1.0]
    assert (gateway.asked[0]["body"]["n"], gateway.asked[0]["body"]["temperature"]) == (10, 0.8)
    answers = lines(run)[0]["answers"][0]
    assert answers["passed"] == [True, False] * 5
    assert len(answers["answers"]) == 10


def test_programs_that_the_operator_does_not_allow_end_the_evaluation(suites: Suites) -> None:
    ended = suites.run("humaneval").end()

    assert (ended.status, ended.error_code) == ("failed", "programs_not_run")


def test_the_base_is_asked_once_for_all_evaluations(suites: Suites, gateway: Gateway, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "a.jsonl"
    first = suites.run("gsm8k", shots=0, cache=cache).report()
    asked = len(gateway.asked)
    second = suites.run("gsm8k", shots=0, cache=cache).report()

    assert [one["model"] for one in gateway.asked[asked:]] == ["new", "new"]
    assert second == first
    cache.write_text("[")
    assert suites.run("gsm8k", shots=0, cache=cache).report() == first, (
        "a file that cannot be read is not used"
    )
    assert [one["model"] for one in gateway.asked[asked + 2 :]].count("base") == 2


def test_answers_with_faults_are_kept_for_nobody(suites: Suites, gateway: Gateway, tmp_path: Path) -> None:
    models, cache = Models(), tmp_path / "cache" / "a.jsonl"
    gateway.answer = lambda model, body: (
        (400, "odd") if model == "base" and "10 times" in body["prompt"][-40:] else models(model, body)
    )

    report = suites.run("gsm8k", shots=0, cache=cache).report()

    assert report.models[1].unanswered == 1
    assert not cache.exists()


def test_killed_it_gives_the_same_figures_and_runs_no_program_twice(suites: Suites, gateway: Gateway) -> None:
    rows = [{**HUMANEVAL[n % 2], "task_id": str(n)} for n in range(20)]
    write_lines(suites.data / "humaneval" / "HumanEval.jsonl", rows)
    undisturbed = suites.run("humaneval", python="sandboxed").report()
    gateway.asked.clear()
    gateway.free_answers = 25
    run = suites.run("humaneval", python="sandboxed")
    process = run.start()
    run.until_answered(25)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gateway.free_answers = 10**9

    assert run.start().wait(120) == 0

    ended = run.folder.read_result(Evaluated)
    assert ended is not None
    assert EvaluationReport.model_validate(ended.report) == undisturbed
    assert len(gateway.asked) == 40
