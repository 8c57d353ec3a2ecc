"""The process of an evaluation on a job folder, with a stand-in for the gateway: killed and stopped ones, faults, and
what it asks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunewright.evaluator.asking import AnswersFile, Kept
from tunewright.evaluator.folder import (
    Asked,
    Evaluated,
    EvaluationSpec,
    answers_file,
    judgements_file,
    results_file,
)
from tunewright.evaluator.report import EvaluationReport
from tunewright.evaluator.run import evaluate
from tunewright.jobs import asking
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.metrics.figures import Scores

ROWS = 60


class Gateway:
    """Answers `POST /ask` with what `answer` returns for the model and the body: a text, or a status with an error."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked: list[dict[str, Any]] = []
        self.projects: set[str | None] = set()
        self.most_at_once = self._now = 0
        self.answer: Callable[[str, dict[str, Any]], Any] = lambda model, body: "yes"
        self.free_answers = 10**9
        """After so many answers it answers no more, until this is raised."""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/ask", self._ask)
        self.add_routes(app)
        runner = web.AppRunner(app, handle_signals=False, handler_cancellation=True)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.UnixSite(runner, str(self.socket)).start())
        self._ready.set()
        self._loop.run_forever()

    def add_routes(self, app: web.Application) -> None:
        """Further ones."""

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _ask(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.projects.add(request.headers.get("X-Tunewright-Project"))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            while self.free_answers <= 0:
                await asyncio.sleep(0.01)
            self.free_answers -= 1
            await asyncio.sleep(0.002)
        finally:
            self._now -= 1
        self.asked.append(asked)
        found = self.answer(asked["model"], asked["body"])
        if isinstance(found, str):
            message = {"text": found, "message": {"content": found}, "finish_reason": "stop"}
            return web.json_response({"choices": [message], "usage": {"completion_tokens": 1}})
        if isinstance(found, tuple):
            status, code = found
            return web.json_response(
                {"error": {"message": f"because of {code}", "code": code}}, status=status
            )
        return web.json_response(found)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "g.sock")
    yield made
    made.close()


class Run:
    def __init__(self, folder: Path, spec: EvaluationSpec) -> None:
        self.folder = JobFolder(folder)
        self.folder.write_spec(spec)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tunewright.evaluator", str(self.folder.path)])

    def end(self) -> Evaluated:
        """What comes of it, in this process: a new one would take seconds."""
        return evaluate(self.folder, self.folder.read_spec(EvaluationSpec))

    def report(self) -> EvaluationReport:
        ended = self.end()
        assert ended.status == "succeeded", ended.error_message
        return EvaluationReport.model_validate(ended.report)

    def until_answered(self, count: int) -> None:
        path = answers_file(self.folder)
        deadline = time.monotonic() + 30
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path, gateway: Gateway) -> Make:
    data = tmp_path / "data.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is {n} even?"},
                {"role": "assistant", "content": "no" if n % 2 else "yes"},
            ]
        }
        for n in range(ROWS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    count = 0

    def made(file: Path = data, rows_in_file: int = ROWS, **fields: Any) -> Run:
        nonlocal count
        count += 1
        models = [Asked(name="new", content="1", at_once=4), Asked(name="old", content="2", at_once=3)]
        spec = {
            "job_id": "eval-1", "socket": str(gateway.socket), "request_timeout": 60, "models": models,
            "file": str(file), "rows_in_file": rows_in_file, "seed": 5, "max_tokens": 9, "memory_bytes": 2**31,
        }  # fmt: skip
        return Run(tmp_path / f"job{count}", EvaluationSpec.model_validate({**spec, **fields}))

    return made


def sometimes_right(model: str, body: dict[str, Any]) -> str:
    number = int(body["messages"][0]["content"].split()[1])
    if model == "new":
        return "Yes." if number % 2 == 0 or number % 9 == 1 else "no"
    return "yes" if number % 3 == 0 else "no idea"


def question(asked: dict[str, Any]) -> tuple[str, str]:
    return asked["model"], asked["body"]["messages"][0]["content"]


def test_the_figures_are_those_of_the_answers(gateway: Gateway, make: Make) -> None:
    gateway.answer = sometimes_right
    run = make(project="proj-1")
    report = run.report()
    assert gateway.projects == {"proj-1"}, "whose use it is"
    said = [sometimes_right("new", {"messages": [{"content": f"Is {n} even?"}]}) for n in range(ROWS)]
    right = [("no", "yes")[n % 2 == 0] == said[n].lower().strip(".") for n in range(ROWS)]
    [accuracy, macro, _] = report.models[0].figures
    assert (report.metrics, accuracy.metric) == (["accuracy", "macro_f1", "weighted_f1"], "accuracy")
    assert accuracy.value == pytest.approx(sum(right) / ROWS)
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < accuracy.value < accuracy.high
    assert macro.interval == "bootstrap"
    confusion = report.models[0].confusion
    assert confusion is not None
    assert confusion.labels == ["no", "yes", "(other)"]
    assert confusion.counts == [[sum(right) - 30, 60 - sum(right), 0], [0, 30, 0], [0, 0, 0]]
    [first, *_] = report.comparisons
    others = [n % 2 == 0 and n % 3 == 0 for n in range(ROWS)]
    assert (first.metric, first.conclusion, first.test) == ("accuracy", "better", "mcnemar_exact")
    assert first.difference == pytest.approx((sum(right) - sum(others)) / ROWS)
    assert first.better_rows == sum(ours and not theirs for ours, theirs in zip(right, others, strict=True))
    [changed] = report.changed
    assert changed.better[0].answer in ("Yes.", "no")
    assert {row.value for row in changed.better} == {1.0}
    lines = [json.loads(line) for line in results_file(run.folder).read_text().splitlines()]
    assert len(lines) == ROWS
    assert sum(line["answers"][0]["figures"]["accuracy"] for line in lines) == sum(right)
    assert lines[1]["messages"] == [{"role": "user", "content": "Is 1 even?"}]
    assert [one["answer"] for one in lines[1]["answers"]] == ["Yes.", "no idea"]
    body = gateway.asked[0]["body"]
    assert (body["temperature"], body["max_tokens"], body["seed"] - 5) in {
        (0, 9, place) for place in range(1, 61)
    }
    assert gateway.asked[0]["content"] == "1"
    assert gateway.most_at_once == 4, "no more than its share"


def test_killed_and_stopped_it_asks_for_what_is_missing_and_gives_the_same(
    gateway: Gateway, make: Make
) -> None:
    gateway.answer = sometimes_right
    undisturbed = make().report()
    gateway.asked.clear()
    gateway.free_answers = 70
    run = make()
    process = run.start()
    run.until_answered(70)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with answers_file(run.folder).open("ab") as file:
        file.write(b'[0, 3, "answ')  # what a kill within a write leaves
    gateway.free_answers = 20
    process = run.start()
    run.until_answered(90)
    process.terminate()
    assert process.wait(30) == STOPPED_RESUMABLE
    gateway.free_answers = 10**9
    assert run.start().wait(60) == 0
    ended = run.folder.read_result(Evaluated)
    assert ended is not None
    assert EvaluationReport.model_validate(ended.report) == undisturbed
    asked = Counter(map(question, gateway.asked))
    assert (len(asked), set(asked.values())) == (2 * ROWS, {1}), "nothing was asked twice"
    told, _ = run.folder.read_events(0)
    assert any("90 of 120 answers are there already" in event["message"] for event in told)


def test_a_judge_sees_both_orders_and_is_asked_nothing_twice_when_killed(
    gateway: Gateway, make: Make
) -> None:
    """A judge that prefers "yes", and the first of two others."""

    def answer(model: str, body: dict[str, Any]) -> str:
        if model != "judge":
            return sometimes_right(model, body)
        first, second = body["messages"][1]["content"].partition("[Answer A]\n")[2].split("\n\n[Answer B]\n")
        is_second = second.startswith("yes") and not first.startswith("yes")
        return json.dumps({"winner": "B" if is_second else "A"})

    gateway.answer = answer
    judge = {"name": "judge", "content": "3", "at_once": 2}
    limit = {"metric": "judge", "min": 0.5}
    undisturbed = make(metrics=["accuracy"], judge=judge, require=[limit]).report()
    assert undisturbed.metrics == ["accuracy", "judge"]
    assert undisturbed.judged is not None
    [found] = undisturbed.judged
    assert (found.against, found.judge, found.wins + found.ties + found.losses) == ("old", "judge", ROWS)
    said = [(answer("new", {"messages": [{"content": f"Is {n} even?"}]}), n % 3 == 0) for n in range(ROWS)]
    losses = sum(is_yes for _, is_yes in said)
    assert (found.wins, found.losses) == (0, losses), "only old says yes"
    assert found.inconsistent == ROWS - losses, "two that are not yes are told apart by their places alone"
    rate = next(one for one in undisturbed.models[0].figures if one.metric == "judge")
    assert rate.value == pytest.approx((ROWS - losses) / 2 / ROWS)
    compared = next(one for one in undisturbed.comparisons if one.metric == "judge")
    assert (compared.better_rows, compared.worse_rows, compared.conclusion) == (0, losses, "worse")
    assert undisturbed.judgement is not None
    assert undisturbed.judgement.verdict == "fail"
    gateway.asked.clear()
    gateway.free_answers = 2 * ROWS + 30
    run = make(metrics=["accuracy"], judge=judge, require=[limit])
    process = run.start()
    path = judgements_file(run.folder)
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_bytes().count(b"\n") < 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gateway.free_answers = 10**9
    assert run.report() == undisturbed
    asked = Counter((one["model"], json.dumps(one["body"]["messages"])) for one in gateway.asked)
    assert set(asked.values()) == {1}
    assert len(asked) == 2 * ROWS + 2 * ROWS
    lines = [json.loads(line) for line in results_file(run.folder).read_text().splitlines()]
    assert [line["answers"][0]["figures"]["judge"] for line in lines[:3]] == [0.0, 0.5, 0.5]


def test_a_grader_is_a_metric(gateway: Gateway, make: Make) -> None:
    grader = {
        "type": "string_check", "name": "same", "operation": "ilike", "input": "{{ sample.output_text }}",
        "reference": "{{ item.expected }}",
    }  # fmt: skip
    gateway.answer = sometimes_right
    asked = {"grader": grader, "mode": "off"}
    report = make(metrics=["accuracy", "grader"], grader=asked).report()
    accuracy, graded = report.models[0].figures
    assert graded.metric == "grader"
    assert (graded.value, report.models[0].ungraded) == (accuracy.value, 0)
    assert report.comparisons[1].conclusion == "better"
    faulty = {**grader, "type": "regex", "pattern": "(", "operation": None}
    with pytest.raises(ValueError, match="grader"):
        make(grader={"grader": faulty, "mode": "off"})
    broken = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1 / 0"}
    failed = make(metrics=["grader"], grader={"grader": broken, "mode": "unconfined"}).end()
    assert (failed.error_code, "on all 60 answers" in (failed.error_message or "")) == ("grader_failed", True)


def test_it_waits_for_engines_and_gives_rows_up_that_fail(
    gateway: Gateway, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.01)
    tries: Counter[str] = Counter()

    def answer(model: str, body: dict[str, Any]) -> Any:
        text = body["messages"][0]["content"]
        tries[text] += 1
        if text == "Is 4 even?":
            return 500, "internal_error"
        if text == "Is 6 even?":
            return 400, "context_length_exceeded"
        if text == "Is 8 even?" and tries[text] < 7:
            return 503, "engine_unavailable"
        return sometimes_right(model, body)

    gateway.answer = answer
    report = make(models=[Asked(name="new", content="1", at_once=60)]).report()
    assert report.models[0].unanswered == 2
    assert report.models[0].first_error == "because of internal_error"
    assert (tries["Is 4 even?"], tries["Is 6 even?"], tries["Is 8 even?"], tries["Is 10 even?"]) == (
        5,
        1,
        7,
        1,
    )
    assert report.models[0].confusion is not None
    assert report.models[0].confusion.counts[1] == [0, 28, 2], "what was not answered counts as wrong"


@pytest.mark.parametrize("code", ["model_changed", "model_quarantined"])
def test_a_model_that_cannot_answer_ends_it_with_the_reason(gateway: Gateway, make: Make, code: str) -> None:
    gateway.answer = lambda model, body: (400, code) if model == "old" else sometimes_right(model, body)
    ended = make().end()
    assert (ended.error_code, ended.error_message) == (code, f"old: because of {code}")


def test_one_without_any_answer_fails(gateway: Gateway, make: Make) -> None:
    gateway.answer = lambda model, body: (400, "context_length_exceeded")
    ended = make().end()
    assert ended.error_code == "no_answers"
    assert "new has answered no row" in str(ended.error_message)


def test_drawn_rows_are_the_same_each_time(gateway: Gateway, make: Make) -> None:
    gateway.answer = sometimes_right
    drawn = []
    for seed in (1, 1, 2):
        gateway.asked.clear()
        assert make(rows=12, seed=seed).report().rows == 12
        drawn.append({question(asked) for asked in gateway.asked})
    assert drawn[0] == drawn[1] != drawn[2]


def test_scores_are_of_the_tokens_of_the_expected_answer(
    gateway: Gateway, make: Make, tmp_path: Path
) -> None:
    def answer(model: str, body: dict[str, Any]) -> Any:
        if "prompt_logprobs" in body:
            tokens = body["prompt"]
            places = [{str(token): {"logprob": -0.5 * token, "rank": token}} for token in tokens]
            return {"choices": [{"text": "", "prompt_logprobs": [None, *places[1:]]}]}
        if isinstance(body.get("prompt"), str):
            return {"tokens": [1 + ord(one) % 2 for one in body["prompt"]]}
        return {"tokens": [9, 9, 7] if body["add_generation_prompt"] else [9, 9, 7, 1, 2, 1]}

    gateway.answer = answer
    report = make(metrics=["perplexity", "token_accuracy"]).report()
    [perplexity, accuracy] = report.models[0].figures
    assert perplexity.value == pytest.approx(2.718281828459045 ** ((0.5 + 1.0 + 0.5) / 3))
    assert accuracy.value == pytest.approx(2 / 3)
    assert {one.conclusion for one in report.comparisons} == {"no_difference_seen"}
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "ab", "completion": "ba"}\n')
    report = make(texts, 1, metrics=["perplexity"]).report()
    assert report.models[0].figures[0].value == pytest.approx(2.718281828459045 ** ((0.5 + 1.0) / 2))


def test_what_the_data_does_not_have_is_told(gateway: Gateway, make: Make, tmp_path: Path) -> None:
    for fields, code, text in (
        ({"metrics": ["field_accuracy"]}, "invalid_data", "60 rows have others"),
        ({"json_schema": {"$ref": "http://x.example/y"}}, "invalid_data", "needs expected answers"),
    ):
        ended = make(**fields).end()
        assert ended.error_code == code
        assert text in str(ended.error_message)
    only = tmp_path / "tools.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [call]}]}
    only.write_text(json.dumps(row) + "\n")
    ended = make(only, 1).end()
    assert "no row has an answer in words" in str(ended.error_message)
    assert gateway.asked == []


def test_answers_are_kept_as_they_are(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path / "answers.jsonl")
    kept = {
        (0, 1, "answer"): Kept("a\n\u2028\ud800\0", "stop", 3),
        (1, 0, "score"): Kept(scores=Scores(1.5, 3, 2)),
        (0, 0, "answer"): Kept(error="no"),
    }
    for key, one in kept.items():
        file.keep(key, one)  # type: ignore[arg-type]
    file.close()
    with (tmp_path / "answers.jsonl").open("ab") as damaged:
        damaged.write(b"5\n[0, 2, 3, null]\n")  # as power loss may leave them
    again = AnswersFile(tmp_path / "answers.jsonl")
    assert again.kept == kept
    again.close()
