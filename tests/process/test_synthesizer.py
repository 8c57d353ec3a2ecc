"""The process of a synthesis on a job folder, with a stand-in for the gateway: what it asks, what it makes of the
answers, what it drops, and killed and stopped ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_evaluator import Gateway

from tunewright.jobs import asking
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.jobs.gateway import AskedModel
from tunewright.rows.formats import check_file
from tunewright.synthesizer import product
from tunewright.synthesizer.answers import Answers
from tunewright.synthesizer.folder import (
    SynthesisSpec,
    Synthesized,
    answers_file,
    dropped_file,
    made_file,
)
from tunewright.synthesizer.new_rows import NewRows
from tunewright.synthesizer.product import Made, Maker
from tunewright.synthesizer.questions import Kept, SourceRow
from tunewright.synthesizer.report import SynthesisReport
from tunewright.synthesizer.run import synthesize
from tunewright.synthesizer.tasks import MOST_REQUESTS, AnswersTask, RowsTask

ROWS = 40
ANSWERS = {"type": "answers"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TEACHER = AskedModel(name="teacher", content="1", at_once=4)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "g.sock")
    yield made
    made.close()


class Run:
    def __init__(self, folder: Path, spec: SynthesisSpec) -> None:
        self.folder = JobFolder(folder)
        self.folder.write_spec(spec)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tunewright.synthesizer", str(self.folder.path)])

    def end(self) -> Synthesized:
        """What comes of it, in this process: a new one would take seconds."""
        return synthesize(self.folder, self.folder.read_spec(SynthesisSpec))

    def report(self) -> SynthesisReport:
        ended = self.end()
        assert ended.status == "succeeded", ended.error_message
        report = SynthesisReport.model_validate(ended.report)
        dropped = sum(one.rows for one in report.dropped.values())
        assert report.requests == report.rows_made + dropped, "none is lost, and none is counted twice"
        lines = dropped_file(self.folder).read_text().splitlines() if dropped else []
        assert len(lines) == dropped
        assert check_file(made_file(self.folder)).rows == report.rows_made, "a job can train on them"
        return report

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in made_file(self.folder).read_text().splitlines()]

    def dropped(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in dropped_file(self.folder).read_text().splitlines()]

    def until_answered(self, count: int) -> None:
        path = answers_file(self.folder)
        deadline = time.monotonic() + 60
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def chat(question: str, answer: str | None = "old", *before: dict[str, Any]) -> dict[str, Any]:
    messages = [*before, {"role": "user", "content": question}]
    if answer is None:
        return {"messages": messages, "id": question}
    return {"messages": [*messages, {"role": "assistant", "content": answer}]}


MANY = [chat(f"What is the square of {n}?", str(n)) for n in range(ROWS)]
Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path, gateway: Gateway) -> Make:
    count = 0

    def made(task: dict[str, Any], source: Sequence[dict[str, Any]] = MANY, **fields: Any) -> Run:
        nonlocal count
        count += 1
        data = tmp_path / f"data{count}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in source))
        spec = {
            "job_id": "synth-1", "socket": str(gateway.socket), "request_timeout": 60, "teacher": TEACHER,
            "file": str(data), "rows_in_file": len(source), "task": task, "seed": 5, "max_tokens": 9,
            "memory_bytes": 2**31,
        }  # fmt: skip
        return Run(tmp_path / f"job{count}", SynthesisSpec.model_validate({**spec, **fields}))

    return made


def question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def squared(_: str, body: dict[str, Any]) -> str:
    return f"It is {int(question(body).split()[-1][:-1]) ** 2}, by seed {body['seed'] % 3}."


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    said = {"message": {"content": text, **message}, "finish_reason": finish}
    return {"choices": [said], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def test_a_teacher_answers_in_the_place_of_the_last_answer(gateway: Gateway, make: Make) -> None:
    gateway.answer = squared
    before = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
              {"role": "assistant", "content": "Hello"})  # fmt: skip
    rows = [chat("What is the square of 3?", "9", *before), *MANY]
    run = make({**ANSWERS, "n": 3, "instructions": "Think."}, rows, project="proj-1")
    report = run.report()
    assert gateway.projects == {"proj-1"}, "whose use it is"
    assert (report.requests, report.rows_drawn, set(report.dropped)) == (123, 41, {"duplicate"})
    first = run.rows()[0]["messages"]
    assert first[:-1] == [
        *before[:2],
        {**before[2], "weight": 0},
        {"role": "user", "content": rows[0]["messages"][3]["content"]},
    ]
    assert first[-1]["role"] == "assistant"
    assert first[-1]["content"].startswith("It is 9, by seed")
    asked = gateway.asked[0]["body"]
    assert (asked["max_tokens"], asked["temperature"], gateway.asked[0]["content"]) == (9, 0.7, "1")
    assert asked["messages"][0] == {"role": "system", "content": "Think.\n\nBe brief."}
    assert "weight" not in json.dumps(asked["messages"]), "the teacher is not told what is learnt"
    seeds = {one["body"]["seed"] for one in gateway.asked}
    assert len(seeds) == 123, "each answer is drawn by a seed of its own"
    assert gateway.most_at_once == 4, "no more than its share"
    answers = Counter((row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in run.rows())
    assert set(answers.values()) == {1}


def test_answers_that_the_file_has_are_dropped_on_request(gateway: Gateway, make: Make) -> None:
    gateway.answer = lambda *_: "3"
    run = make({**ANSWERS, "n": 2}, deduplicate={"source": True})
    report = run.report()
    assert {name: one.rows for name, one in report.dropped.items()} == {"in_source": 2, "duplicate": ROWS - 1}
    assert report.dropped["in_source"].places == [4, 4]
    only = make(ANSWERS, rows=5).report()
    assert (only.rows_drawn, only.rows_made, only.dropped) == (5, 5, {}), (
        "the same answer to each is none too many"
    )
    other = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "name": "g"}}]
    rows = [{**chat("What?", "3"), "tools": TOOLS}, {**chat("What?", "4"), "tools": other}]
    assert make(ANSWERS, rows).report().rows_made == 2, "the question has other tools"
    assert make(ANSWERS, rows, deduplicate={"source": True}).report().dropped["in_source"].places == [1]


def test_killed_and_stopped_it_asks_for_what_is_missing_and_makes_the_same_file(
    gateway: Gateway, make: Make
) -> None:
    gateway.answer = squared
    undisturbed = make({**ANSWERS, "n": 2})
    report = undisturbed.report()
    gateway.asked.clear()
    gateway.free_answers = 30
    run = make({**ANSWERS, "n": 2})
    process = run.start()
    run.until_answered(30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with answers_file(run.folder).open("ab") as file:
        file.write(b'5\n[1, null]\n[3, {"te')  # what power loss, and a kill within a write, may leave
    gateway.free_answers = 20
    process = run.start()
    run.until_answered(50)
    process.terminate()
    assert process.wait(60) == STOPPED_RESUMABLE
    gateway.free_answers = 10**9
    assert run.report() == report
    assert made_file(run.folder).read_bytes() == made_file(undisturbed.folder).read_bytes()
    asked = Counter(one["body"]["seed"] for one in gateway.asked)
    assert (len(asked), set(asked.values())) == (2 * ROWS, {1}), "nothing was asked twice"
    told, _ = run.folder.read_events(0)
    assert any("50 answers are there already" in event["message"] for event in told)


def test_what_the_teacher_does_not_answer_is_counted_by_row(
    gateway: Gateway, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.01)
    said: dict[str, Any] = {
        "long": (400, "context_length_exceeded"),
        "odd": (400, "invalid_value"),
        "broken": (500, "internal_error"),
        "cut": completion("and so", "length"),
        "none": completion("  "),
        "asked": completion("I'm sorry, but I can't help with that."),
        "filtered": completion(None, refusal="no"),
        "good": completion("Sorry, I cannot find a parcel with this number."),
        "noticed": completion("I can't help but notice that the invoice has two dates."),
        "dated": completion("Sorry, I can't provide a date, but your parcel is on its way."),
        "partly": completion("I can't help with that, but I can help with something else."),
        "called": completion(None, "tool_calls", tool_calls=[
            {"id": "random-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
    }  # fmt: skip
    tried: Counter[str] = Counter()

    def answer(_: str, body: dict[str, Any]) -> Any:
        tried[question(body)] += 1
        return said[question(body)]

    gateway.answer = answer
    rows = [*(chat(one, None) for one in said), {"messages": [{"role": "user", "content": ""}], "id": 0}]
    run = make(ANSWERS, rows)
    report = run.report()
    assert {reason: (one.rows, one.places) for reason, one in report.dropped.items()} == {
        "context_too_long": (1, [1]),
        "request_refused": (1, [2]),
        "not_answered": (1, [3]),
        "cut_off": (1, [4]),
        "empty": (1, [5]),
        "refusal": (3, [6, 7, 11]),
        "no_prompt": (1, [13]),
    }
    assert report.dropped["request_refused"].first == "because of invalid_value"
    told, _ = run.folder.read_events(0)
    assert any(event["message"] == "answers 13/13" for event in told), "also of what asks nothing"
    assert (tried["broken"], tried["odd"], report.prompt_tokens, report.completion_tokens) == (5, 1, 63, 27)
    assert [one["row"] for one in run.dropped()] == [1, 2, 3, 4, 5, 6, 7, 11, 13]
    good, *_, called = (row["messages"][-1] for row in run.rows())
    assert good["content"].startswith("Sorry, I cannot find")
    assert called["tool_calls"][0]["id"] == "call_0", "the same each time"
    kept = make({**ANSWERS, "keep_refusals": True}, [chat("asked", None)])
    assert kept.report().rows_made == 1
    failed = make(ANSWERS, [chat("long", None), chat("none", None)]).end()
    assert (failed.error_code, failed.status) == ("nothing_made", "failed")
    assert "1 context_too_long (the first: because of context_length_exceeded)" in str(failed.error_message)
    gateway.answer = lambda _, body: (400, "unsupported") if "tools" in body else "yes"
    rows = [{**MANY[0], "tools": TOOLS}, *MANY[1:10]]
    report = make(ANSWERS, rows).report()
    assert (report.rows_made, report.dropped["request_refused"].places) == (9, [1]), (
        "the others have no tools"
    )
    gateway.answer = lambda *_: (404, "model_changed")
    assert make(ANSWERS).end().error_code == "model_changed", "every other row has it too"


def test_a_grader_keeps_the_best_answers(gateway: Gateway, make: Make) -> None:
    gateway.answer = lambda _, body: question(body).split()[-1][0] * (1 + body["seed"] % 7)
    grader = {
        "type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match",
        "input": "{{sample.output_text}}", "reference": "{{item.expected}}",
    }  # fmt: skip
    rows = MANY[2:7]
    run = make({**ANSWERS, "n": 3, "grader": grader, "keep": "best", "min_score": 0.4}, rows)
    report = run.report()
    assert report.scores is not None
    assert (report.scores.graded, report.scores.most) == (15, 1.0)
    assert set(report.dropped) == {"low_score", "not_best"}
    dropped = run.dropped()
    assert all(one["score"] < 0.4 for one in dropped if one["reason"] == "low_score")
    for row in run.rows():
        place = next(n for n, one in enumerate(rows, 1) if one["messages"][0] == row["messages"][0])
        others = [len(one["answer"]) for one in dropped if one["row"] == place]
        assert len(others) == 2, "one of three answers is kept"
        assert len(row["messages"][-1]["content"]) <= min(others), "the shortest is the most alike"


def test_paraphrases_rewrite_what_the_user_says_and_keep_the_answers(gateway: Gateway, make: Make) -> None:
    def answer(_: str, body: dict[str, Any]) -> Any:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]["turns"]
        said = [one["content"] for one in json.loads(question(body)) if one["role"] == "user"]
        assert schema["minItems"] == schema["maxItems"] == len(said)
        if said[0].startswith("bad"):
            return {"bad1": "no JSON", "bad2": '{"turns": []}', "bad3": '{"turns": [""]}'}[said[0]]
        if said[0] == "same":
            return json.dumps({"turns": said})
        manner = body["messages"][0]["content"].split("message of the user ")[1].split(".")[0]
        return json.dumps({"turns": [f"{turn}, {manner}" for turn in said]})

    gateway.answer = answer
    first = chat("One", "1")["messages"]
    rows = [chat("Two", "2", *first), *(chat(one, "3") for one in ("bad1", "bad2", "bad3", "same", "last"))]
    run = make({"type": "paraphrases", "per_row": 2}, rows)
    report = run.report()
    assert {name: one.rows for name, one in report.dropped.items()} == {
        "invalid_json": 4,
        "empty": 2,
        "in_source": 2,
    }
    made = run.rows()
    assert [one["role"] for one in made[0]["messages"]] == ["user", "assistant"] * 2
    assert made[0]["messages"][0]["content"].startswith("One, ")
    assert [made[0]["messages"][number]["content"] for number in (1, 3)] == ["1", "2"]
    assert len(made) == 4
    better = {"prompt": "Which?", "chosen": "this one", "rejected": "that one"}
    run = make({"type": "paraphrases"}, [better])
    run.report()
    [one] = run.rows()
    assert {**one, "prompt": "Which?"} == better
    run = make({"type": "paraphrases"}, [chat("What?", None)])
    run.report()
    assert run.rows()[0]["id"] == "What?", "what a grader knows of a row stays"


def test_new_rows_are_asked_for_until_there_are_enough(gateway: Gateway, make: Make) -> None:
    made: list[str] = []

    def answer(_: str, body: dict[str, Any]) -> Any:
        shown = question(body).count('{"turns"')
        if shown > 2:
            return 400, "context_length_exceeded"
        made.append(body["messages"][0]["content"])
        number = len(set(made)) if body["seed"] % 3 else 0
        seed = body["seed"]
        turns = [{"user": f"Why {number and seed}?", "assistant": f"Because of {number and seed}."}]
        return json.dumps({"turns": turns})

    gateway.answer = answer
    rows = [chat(f"Why {n}?", f"Because {n}.", {"role": "system", "content": "Explain."}) for n in range(9)]
    task = {"type": "rows", "count": 20, "examples": 5, "topics": ["cats", "dogs"]}
    run = make(task, rows)
    report = run.report()
    assert (report.rows_made, report.dropped["duplicate"].rows) == (20, report.requests - 20)
    assert report.requests > 20
    messages = run.rows()[0]["messages"]
    assert [one["role"] for one in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Explain."
    assert {text.splitlines()[-1] for text in made} == {
        "The new example is about: cats",
        "The new example is about: dogs",
    }
    again = make(task, rows)
    again.report()
    assert again.rows() == run.rows(), "the same seeds make the same rows"
    gateway.answer = lambda *_: json.dumps({"turns": [{"user": "Why 1?", "assistant": "Because 1."}]})
    failed = make({**task, "count": 4}, rows).end()
    assert (failed.error_code, failed.report and failed.report["requests"]) == ("nothing_made", 12)
    assert "12 in_source" in str(failed.error_message)
    gateway.answer = lambda *_: json.dumps({"prompt": "3+3=", "completion": "6"})
    texts = make({"type": "rows", "count": 1}, [{"prompt": "2+2=", "completion": "4"}])
    texts.report()
    assert texts.rows() == [{"prompt": "3+3=", "completion": "6"}]


def test_a_teacher_that_only_copies_is_asked_in_few_rounds(
    gateway: Gateway, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    make_rows = Maker.make

    def counted(maker: Maker, kept: dict[int, Kept], requests: int) -> Made:
        rounds.append(requests)
        return make_rows(maker, kept, requests)

    monkeypatch.setattr(Maker, "make", counted)
    answered = 0

    def answer(_: str, body: dict[str, Any]) -> str:
        nonlocal answered
        answered += 1
        number = min(answered, 19)
        return json.dumps({"turns": [{"user": f"Why {number}00?", "assistant": f"Because of {number}00."}]})

    gateway.answer = answer
    report = make({"type": "rows", "count": 20}).report()
    assert rounds == list(range(20, 32)), "each round asks for the row that is missing"
    assert (report.rows_made, report.dropped["duplicate"].rows) == (19, 12)


def test_long_work_has_parts_and_requests_have_a_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_PART", 10)
    run = make(ANSWERS)
    spec = run.folder.read_spec(SynthesisSpec)
    rows = [SourceRow(place, row) for place, row in enumerate(MANY, 1)]
    parts: list[int] = []
    maker = Maker(spec, Answers(spec, rows, AnswersTask()), lambda: parts.append(0))
    assert len(maker.make({number: Kept(text="yes") for number in range(ROWS)}, ROWS).rows) == ROWS
    assert len(parts) == 2 * ROWS // 10, "while the rows are made, and while they are compared"
    assert NewRows(spec, rows, RowsTask(count=MOST_REQUESTS)).most == MOST_REQUESTS


def test_a_teacher_without_a_chat_template_continues_texts(gateway: Gateway, make: Make) -> None:
    gateway.answer = lambda _, body: f" {len(body['prompt'])}"
    rows = [{"prompt": "2+2=", "completion": " 4"}]
    run = make(ANSWERS, rows, has_template=False)
    run.report()
    assert run.rows() == [{"prompt": "2+2=", "completion": " 4"}]
    assert gateway.asked[0]["path"] == "/v1/completions"
    gateway.answer = lambda _, body: "four"
    run = make(ANSWERS, rows)
    run.report()
    [row] = run.rows()
    assert [one["content"] for one in row["messages"]] == ["2+2=", "four"], "with one it is asked in a chat"
