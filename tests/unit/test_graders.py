"""Graders: what each makes of an answer, and what programs and patterns of strangers cannot do."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tunewright.errors import InvalidRequest
from tunewright.graders import formula, sandbox, score_model
from tunewright.graders.calling import check_grader, grade_apart, grade_batch, requests_to_models
from tunewright.graders.grading import grade
from tunewright.graders.models import AnyGrader, Grader, ScoreModelGrader, item_references
from tunewright.graders.outcome import Outcome
from tunewright.graders.similarity import METRICS, similarity
from tunewright.graders.templates import NoJson, Sample, UnknownVariable, filled

ADAPTER: TypeAdapter[AnyGrader] = TypeAdapter(Grader)
ANSWER = "{{ sample.output_text }}"


def parsed(type: str, **fields: Any) -> AnyGrader:
    return ADAPTER.validate_python({"type": type, "name": "it", **fields})


def reward(grader: AnyGrader, answer: str, **item: Any) -> float:
    outcome = grade(grader, Sample(answer), item, {}, "off")
    assert outcome.errors.names == []
    return outcome.reward


def errors(grader: AnyGrader, answer: str, **item: Any) -> list[str]:
    outcome = grade(grader, Sample(answer), item, {}, "off")
    assert outcome.reward == 0.0
    return outcome.errors.names


# templates


def test_references_are_replaced_by_the_values_of_the_item_and_the_sample() -> None:
    item = {"a": "x", "b": [{"c": 2.5}], "d": None, "e f": 1, "u": {"v": "ü"}}
    sample = Sample('{"n": [1, {"m": "y"}]}')
    text = (
        "{{item.a}}|{{ item.b.0.c }}|{{item.b[0].c}}|{{ item.d }}|{{item.u}}|{{ sample.output_json.n[1].m }}"
    )
    assert filled(text, item, sample) == 'x|2.5|2.5|null|{"v": "ü"}|y'
    assert filled(ANSWER, {}, sample) == sample.text
    assert filled("} { }} {a}", {}, sample) == "} { }} {a}"


def test_a_value_is_never_looked_through_for_references() -> None:
    assert filled("{{item.a}}", {"a": "{{item.secret}}", "secret": "s"}, Sample("")) == "{{item.secret}}"


@pytest.mark.parametrize(
    "text",
    ["{{", "{{item}}", "{{item.a", "{{ item.a | upper }}", "{{item.__class__()}}", "{% if 1 %}{{x}}",
     "{{sample.choices}}",
     "{{ sample.output_text.x }}", "{{item['a']}}", "{{" + "item.a" * 99999 + "}}"],
)  # fmt: skip
def test_nothing_else_is_a_reference(text: str) -> None:
    with pytest.raises(ValidationError, match=r"reference|not offered|at most"):
        parsed("string_check", input=text, reference="", operation="eq")


def test_what_is_not_there_is_an_error() -> None:
    for text, item in (("{{item.a}}", {}), ("{{item.a.b}}", {"a": "x"}), ("{{item.a.3}}", {"a": [1]})):
        with pytest.raises(UnknownVariable, match=r"item\.a"):
            filled(text, item, Sample(""))
    with pytest.raises(NoJson):
        filled("{{sample.output_json.a}}", {}, Sample("no"))


def test_a_text_does_not_grow_without_bound() -> None:
    grader = parsed("string_check", input=ANSWER * 2000, reference="", operation="eq")
    assert errors(grader, "x" * 100_000) == ["truncated_observation_error"]


# comparisons


@pytest.mark.parametrize(
    ("operation", "answer", "expected"),
    [("eq", "Yes", 1), ("eq", "yes", 0), ("ne", "yes", 1), ("ne", "Yes", 0), ("like", "Oh Yes!", 1),
     ("like", "oh yes!", 0), ("ilike", "oh yes!", 1), ("ilike", "no", 0)],
)  # fmt: skip
def test_strings_are_compared(operation: str, answer: str, expected: float) -> None:
    grader = parsed("string_check", input=ANSWER, reference="{{item.right}}", operation=operation)
    assert reward(grader, answer, right="Yes") == expected


def test_errors_of_the_sample_and_of_the_item_are_told_apart() -> None:
    of_json = parsed("string_check", input="{{sample.output_json.a}}", reference="{{item.b}}", operation="eq")
    assert errors(of_json, "no json", b="1") == ["sample_parse_error"]
    assert errors(of_json, '{"a": 1}') == ["invalid_variable_error"]
    assert reward(of_json, '{"a": 1}', b="1") == 1


def test_the_measures_are_those_of_sacrebleu_nltk_and_rouge_score() -> None:
    """The numbers are of sacrebleu 2.6.0 (tokens joined by spaces, tokenize="none", effective_order), nltk 3.10.4 and
    rouge-score 0.1.2."""
    rows = json.loads((Path(__file__).parent / "similarity_expected.json").read_text())
    assert len(rows) > 10
    for row in rows:
        for metric in METRICS.keys() - {"fuzzy_match"}:
            found = similarity(metric, row["input"], row["reference"])
            assert found == pytest.approx(row[metric], abs=1e-9), (metric, row)
    assert similarity("rouge_1", "größer", "GRÖSSER größer") == pytest.approx(2 / 3)


def test_fuzzy_match_is_one_for_the_same_text_and_less_for_others() -> None:
    grader = parsed("text_similarity", input=ANSWER, reference="{{item.r}}", evaluation_metric="fuzzy_match")
    assert reward(grader, "Paris", r="Paris") == 1
    assert reward(grader, "Pairs", r="Paris") == pytest.approx(0.8)
    assert errors(grader, "x" * 100_001, r="x") == ["other_error"]


@pytest.mark.parametrize("metric", ["cosine", "meteor"])
def test_a_measure_that_is_not_had_is_refused_by_name(metric: str) -> None:
    with pytest.raises(ValidationError, match=f"{metric} is not offered"):
        parsed("text_similarity", input="", reference="", evaluation_metric=metric)


# formulas


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a + 2 * b", 0.9), ("2 * a ^ 2", 0.5), ("-a ^ 2", -0.25), ("(a + b) / 2", 0.35), ("min(a, b, 0.1)", 0.1),
     ("max(a, b)", 0.5), ("abs(-a)", 0.5), ("floor(a) + ceil(b)", 1.0), ("exp(0) + log(1)", 1.0), ("sqrt(a * a)", 0.5),
     ("min(a) + max(b)", 0.7)],
)  # fmt: skip
def test_a_formula_is_computed(text: str, expected: float) -> None:
    formula.check(text, {"a": 0, "b": 0})
    assert formula.computed(text, {"a": 0.5, "b": 0.2}) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "a.real", "a if b else a", "[a]", "lambda: a", "a ** b", "a // b", "a and b", "'a'",
     "1e999",
     "c", "pow(a, b)", "min()", "abs(a, b)", "a; b", "", "(" * 300 + "a" + ")" * 300, "+".join(["a"] * 400),
     "-" * 60 + "a",
     "max(*a)", "a == b", "True", "f'{a}'", "a := 1"],
)  # fmt: skip
def test_nothing_else_is_a_formula(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        formula.check(text, {"a": 0, "b": 0})


@pytest.mark.parametrize(
    "text", ["1 / (a - a)", "log(0 * a)", "9 ^ 9 ^ 9 ^ 9", "exp(1000)", "sqrt(-1)", "(0 - 2) ^ 0.5"]
)
def test_a_formula_without_a_finite_result_is_an_error(text: str) -> None:
    formula.check(text, {"a": 0})
    with pytest.raises(formula.NoResult):
        formula.computed(text, {"a": 1.0})


CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": ANSWER,
    "reference": "{{item.r}}",
    "operation": "eq",
}
LIKE = {**CHECK, "name": "in", "operation": "ilike"}


def test_several_graders_are_one_by_a_formula() -> None:
    grader = parsed(
        "multi", graders={"exact": CHECK, "inside": LIKE}, calculate_output="0.5 * exact + inside"
    )
    outcome = grade(grader, Sample("It is 4"), {"r": "4"}, {}, "off")
    assert (outcome.reward, outcome.sub_rewards) == (1.0, {"exact": 0.0, "inside": 1.0})
    one = parsed("multi", graders=CHECK, calculate_output="2 * exact")
    assert reward(one, "4", r="4") == 2
    divides = parsed("multi", graders={"exact": CHECK}, calculate_output="1 / exact")
    assert errors(divides, "5", r="4") == ["formula_parse_error"]
    assert errors(grader, "5") == ["invalid_variable_error"]
    assert {str(one) for one in item_references(grader)} == {"item.r"}


def test_a_formula_over_graders_that_are_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="no grader 'other'"):
        parsed("multi", graders={"exact": CHECK}, calculate_output="exact + other")
    with pytest.raises(ValidationError):
        parsed("multi", graders={"not a name": CHECK}, calculate_output="1")
    with pytest.raises(ValidationError):
        parsed("multi", graders={"m": {"type": "multi", "name": "m"}}, calculate_output="m")


# our own


def test_patterns_are_searched_or_matched() -> None:
    assert reward(parsed("regex", pattern=r"\d+"), "it is 42.") == 1
    assert reward(parsed("regex", pattern=r"\d+", match="full"), "it is 42.") == 0
    assert reward(parsed("regex", pattern="^yes", input="{{item.a}}"), "", a="yes") == 1


def test_a_pattern_that_backtracks_for_ever_is_ended() -> None:
    began = time.process_time()
    outcome = grade(parsed("regex", pattern=r"(a|a)*b"), Sample("a" * 60), {}, {}, "off")
    assert outcome.errors.names == ["other_error"]
    assert "more than 1 s" in str(outcome.errors.other_error_details)
    assert time.process_time() - began < 10


SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"$ref": "#/$defs/small"}},
    "$defs": {"small": {"maximum": 3}},
}


def test_answers_are_checked_by_a_schema() -> None:
    grader = parsed("json_schema", json_schema=SCHEMA)
    assert [reward(grader, text) for text in ('{"n": 2}', '{"n": 5}', "[]", "no json")] == [1, 0, 0, 0]


def test_a_schema_that_takes_for_ever_is_ended() -> None:
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    grader = parsed("json_schema", json_schema={"$ref": "#/$defs/d0", "$defs": {**doubled, "d40": {}}})
    assert errors(grader, "1") == ["other_error"]
    for schema in ({"$ref": "#"}, {"$ref": "#/nowhere"}):
        assert errors(parsed("json_schema", json_schema=schema), "1") == ["other_error"]


def test_what_the_schemas_library_fails_on_is_an_error_of_the_grader() -> None:
    assert errors(parsed("json_schema", json_schema={"multipleOf": 0.1}), "1" + "0" * 400) == ["other_error"]


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (parsed("regex", pattern="(a"), "grader.pattern"),
        (parsed("json_schema", json_schema={"type": "thing"}), "grader.json_schema"),
        (parsed("json_schema", json_schema={"minimum": True}), "grader.json_schema"),
        (parsed("regex", pattern="(" * 1000 + ")" * 1000), "grader.pattern"),
        (parsed("json_schema", json_schema={"$ref": "http://example.com/x"}), "grader.json_schema"),
        (parsed("python", source="def grade(sample, item): return 1"), "grader"),
        (
            parsed(
                "multi",
                graders={"a": {"type": "regex", "name": "r", "pattern": "(?P<x>a)(?P=y)"}},
                calculate_output="a",
            ),
            "grader.graders.a.pattern",
        ),
    ],
)
def test_a_grader_that_cannot_work_is_refused_with_the_place(grader: AnyGrader, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_grader(grader, "grader", "off")
    assert refused.value.param == param
    assert not re.search(r"True|Python|recursion", refused.value.message), "no text of Python's"


# models


def asks(**more: Any) -> ScoreModelGrader:
    made = parsed(
        "score_model",
        model="judge",
        input=[
            {"role": "system", "content": "Score it."},
            {"role": "user", "content": [{"type": "input_text", "text": "{{item.q}}: "}, ANSWER]},
        ],
        **more,
    )
    assert isinstance(made, ScoreModelGrader)
    return made


def completion(content: str | None, **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": 9}}).encode()


def test_a_model_is_asked_for_a_score() -> None:
    grader = asks(
        range=[0, 10], sampling_params={"temperature": 0.5, "seed": 3, "max_completions_tokens": 20}
    )
    made = requests_to_models(grader, Sample("four"), {"q": "2+2"})["it"]
    assert isinstance(made, dict)
    assert made["messages"] == [
        {"role": "system", "content": "Score it."},
        {"role": "user", "content": "2+2: four"},
    ]
    assert (made["model"], made["temperature"], made["seed"], made["max_tokens"]) == ("judge", 0.5, 3, 20)
    assert made["response_format"]["json_schema"]["schema"]["required"] == ["result"]
    outcome = score_model.outcome(grader, completion('{"result": 7}'))
    assert (outcome.reward, outcome.errors.names, outcome.tokens) == (7.0, [], {"judge": 9})
    missing = requests_to_models(grader, Sample("four"), {})["it"]
    assert isinstance(missing, Outcome)
    assert missing.errors.names == ["invalid_variable_error"]


@pytest.mark.parametrize(
    ("answer", "flag"),
    [
        (completion('{"result": 7}'), "model_grader_parse_error"),
        (completion('{"result": true}'), "model_grader_parse_error"),
        (completion('{"result": NaN}'), "model_grader_parse_error"),
        (completion("[1]"), "model_grader_parse_error"),
        (completion(None), "model_grader_parse_error"),
        (completion(None, refusal="No."), "model_grader_refusal_error"),
        (b"<html>", "model_grader_server_error"),
        (b"[]", "model_grader_server_error"),
    ],
)
def test_an_answer_without_a_score_in_range_is_an_error(answer: bytes, flag: str) -> None:
    outcome = score_model.outcome(asks(), answer)
    assert outcome.errors.names == [flag]
    assert outcome.reward == 0.0


# programs

needs_sandbox = pytest.mark.skipif(
    sandbox.refusal("sandboxed") is not None, reason=str(sandbox.refusal("sandboxed"))
)


def program(body: str) -> AnyGrader:
    return parsed("python", source=f"import os\n\n\ndef grade(sample, item):\n    {body}\n")


@needs_sandbox
def test_a_program_gets_the_sample_and_the_item() -> None:
    source = program("return sample['output_json']['n'] + len(sample['output_text']) + item['m']")
    check_grader(source, "grader", "sandboxed")
    outcome = grade_apart(source, Sample('{"n": 1}'), {"m": 0.5}, {}, "sandboxed")
    assert (outcome.reward, outcome.errors.names) == (9.5, [])
    fails = grade_apart(program("return item['missing']"), Sample(""), {}, {}, "sandboxed")
    assert fails.errors.names == ["python_grader_runtime_error"]
    assert "KeyError: 'missing'" in str(fails.errors.python_grader_runtime_error_details)
    assert "sandboxed.py" not in str(fails.errors.python_grader_runtime_error_details)


@needs_sandbox
@pytest.mark.parametrize(
    "body",
    [
        "return len(open('/etc/passwd').read())",
        "return len(open(f'/proc/{os.getppid()}/environ', 'rb').read())",
        "return len(os.listdir('/'))",
        "open('/tmp/tunewright-grader', 'w')\n    return 1",
        "import socket\n    socket.socket(socket.AF_INET)\n    return 1",
        "import socket\n    socket.socket(socket.AF_UNIX)\n    return 1",
        "os.fork()\n    return 1",
        "import subprocess\n    subprocess.run(['/bin/true'])\n    return 1",
        "os.kill(os.getppid(), 0)\n    return 1",
        "os.execv('/bin/true', ['true'])",
        "import resource\n    resource.prlimit(os.getppid(), resource.RLIMIT_CPU)\n    return 1",
        "return len(b'x' * 2**31)",
        "return float('nan')",
        "os._exit(0)",
        "import ctypes\n    ctypes.string_at(0)",
    ],
)
def test_a_program_reaches_nothing_outside(body: str) -> None:
    outcome = sandbox.run(program(body).source, Sample(""), {}, "sandboxed")  # type: ignore[union-attr]
    assert outcome.errors.names == ["python_grader_runtime_error"], outcome
    assert not os.path.exists("/tmp/tunewright-grader")


@needs_sandbox
@pytest.mark.parametrize(
    "body",
    [
        "os.chmod(path, 0)", "os.chown(path, os.getuid(), -1)", "os.utime(path, (1, 1))",
        "os.setxattr(path, 'user.a', b'')", "os.removexattr(path, 'user.b')", "os.fchmod(0, 0o600)",
        *(f"import fcntl; fcntl.fcntl(0, {command}, os.getppid())" for command in ("fcntl.F_SETOWN", 10, 15, 1026)),
        "import ctypes; os.close(ctypes.CDLL(None).inotify_init1(0))",
    ],
)  # fmt: skip
def test_a_program_changes_nothing_about_files_and_watches_none(tmp_path: Path, body: str) -> None:
    """Landlock controls what is in files, and not their modes, owners, times and attributes."""
    file = tmp_path / "file"
    file.write_text("x")
    with suppress(OSError):
        os.setxattr(file, "user.b", b"")
    before = os.stat(file)
    source = f"import os\n\n\ndef grade(sample, item):\n    path = {str(file)!r}\n    {body}\n    return 1\n"
    outcome = sandbox.run(source, Sample(""), {}, "sandboxed")
    assert outcome.errors.names == ["python_grader_runtime_error"], outcome
    if "inotify" not in body:  # by ctypes, which raises nothing of its own
        assert "Operation not permitted" in str(outcome.errors), outcome
    after = os.stat(file)
    assert (after.st_mode, after.st_mtime, after.st_ctime) == (
        before.st_mode,
        before.st_mtime,
        before.st_ctime,
    )


@needs_sandbox
def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    for body in ("while True:\n        pass", "import time\n    time.sleep(1000)"):
        outcome = sandbox.run(program(body).source, Sample(""), {}, "sandboxed")  # type: ignore[union-attr]
        assert outcome.errors.names == ["python_grader_runtime_error"]


# processes


def test_an_answer_that_ends_the_process_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.graders import calling

    monkeypatch.setattr(calling, "_GRADE_SECONDS", 1)
    grader = parsed("regex", pattern="(a|a)*b")
    answers = [Sample(text) for text in ("b", "a" * 60, "a" * 61, "c")]
    outcomes = grade_batch(grader, answers, [{}] * 4, "off")
    assert [one.reward for one in outcomes] == [1, 0, 0, 0]
    assert [bool(one.errors.names) for one in outcomes] == [False, True, True, False]
