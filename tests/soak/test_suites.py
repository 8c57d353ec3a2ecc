"""`make soak-clients`: suites of real questions give the answers of lm-evaluation-harness, question by question; and
the latency of a real engine.

Needs TUNEWRIGHT_ASSETS (MMLU, GSM8K) and TUNEWRIGHT_CLIENTS (the packages of requirements/clients.txt).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from suites import write_lines
from tests.engine.conftest import Service, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright.evaluator.suites import SUITES, SuiteQuestion, last_number
from tunewright.metrics.names import SuiteName
from tunewright.rows.drawing import drawn
from tunewright_client import Evaluation

CLIENTS = os.environ.get("TUNEWRIGHT_CLIENTS")
ASSETS = Path(os.environ.get("TUNEWRIGHT_ASSETS", "/nonexistent"))
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CLIENTS is None, reason="TUNEWRIGHT_CLIENTS names no folder"),
    pytest.mark.skipif(not (ASSETS / "data/mmlu").is_dir(), reason="TUNEWRIGHT_ASSETS has no questions"),
]
SUBJECTS = ("anatomy", "high_school_physics", "world_religions")
ROWS, SEED, ANSWER_TOKENS = 80, 3, 48
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{expected}}}}"
metric_list: [{{metric: acc}}]
"""
NUMBER = """
task: number
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs: {{until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0, max_gen_toks: 48}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    with zipfile.ZipFile(ASSETS / "data/mmlu/mmlu.zip") as archive:
        for split in ("dev", "test"):
            (folder / "mmlu" / split).mkdir(parents=True)
            for subject in SUBJECTS:
                name = f"{subject}_{split}.csv"
                (folder / "mmlu" / split / name).write_bytes(archive.read(f"data/{split}/{name}"))
    rows = [json.loads(line) for line in (ASSETS / "data/gsm8k/train.jsonl").open()]
    write_lines(folder / "gsm8k" / "train.jsonl", rows[:5])
    write_lines(folder / "gsm8k" / "test.jsonl", rows[5:305])
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, questions: Path) -> Iterator[Service]:
    options = ("--eval-data", str(questions), "--price-per-hour", "0.1")
    running = start_service(tmp_path_factory.mktemp("suites") / "data", *options)
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


def asked(questions: Path, name: SuiteName, shots: int) -> list[SuiteQuestion]:
    every = SUITES[name].questions(questions, shots)
    return [every[number] for number in sorted(drawn(len(every), ROWS, SEED))]


def by_lm_eval(service: Service, folder: Path, task: str, rows: list[SuiteQuestion]) -> list[str]:
    """What lm-evaluation-harness makes of the model's answer to each question."""
    assert CLIENTS is not None, "else it is skipped"
    name = "choice" if task is CHOICE else "number"
    contexts = [{"context": next(row.forms())["prompt"], "expected": row.expected} for row in rows]
    write_lines(folder / "rows.jsonl", contexts)
    (folder / f"{name}.yaml").write_text(task.format(rows=folder / "rows.jsonl"))
    model = (
        f"model={EMBEDDED_BASE},base_url={service.url}/v1/completions,tokenizer={embedded_base_path()},"
        "num_concurrent=4,max_retries=1,max_length=1024"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model, "--tasks", name,
            "--include_path", str(folder), "--batch_size", "4" if name == "choice" else "1", "--log_samples",
            "--output_path", str(folder / "out"),
        ],
        env={**os.environ, "PYTHONPATH": CLIENTS, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"},
        cwd=folder, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = (folder / "out").rglob("samples_*.jsonl")
    samples = sorted((json.loads(line) for line in file.open()), key=lambda one: int(one["doc_id"]))
    if name == "number":
        return [last_number(sample["resps"][0][0]) for sample in samples]
    scores = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return ["ABCD"[of_one.index(max(of_one))] for of_one in scores]


def by_the_service(service: Service, done: Evaluation) -> list[str]:
    with service.client() as client:
        lines = client.files.content(done.results_file or "").splitlines()
    return [json.loads(line)["answers"][0]["answer"] for line in lines]


@pytest.mark.parametrize(("name", "shots"), [("mmlu", 0), ("mmlu", 2), ("gsm8k", 1)])
def test_answers_are_those_that_lm_evaluation_harness_gets(
    service: Service, questions: Path, tmp_path: Path, name: SuiteName, shots: int
) -> None:
    with service.client(timeout=120) as client:
        done = client.evaluations.create(
            EMBEDDED_BASE, suite={"name": name, "shots": shots}, rows=ROWS, seed=SEED,
            max_tokens=ANSWER_TOKENS if name == "gsm8k" else None,
        ).wait(timeout=900)  # fmt: skip
    rows = asked(questions, name, shots)
    ours = by_the_service(service, done)

    theirs = by_lm_eval(service, tmp_path, CHOICE if name == "mmlu" else NUMBER, rows)

    if name == "gsm8k":
        ours = [last_number(answer) for answer in ours]
    assert done.report is not None
    figure = done.report.figure("accuracy")
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    right = sum(answer == row.expected for answer, row in zip(theirs, rows, strict=True))
    print(
        f"\n{name}, {shots} examples: {same} of {len(rows)} answers are the same; lm-eval finds {right} right"
    )
    print(f"the service: {figure}")
    assert done.report.models[0].unanswered == 0
    assert same >= len(rows) - 1, "batches of other shapes round otherwise"
    assert figure is not None
    assert figure.value is not None
    assert abs(figure.value * len(rows) - right) < 1.5


def test_bench_measures_a_model_of_the_engine(service: Service) -> None:
    load = {"at_once": [1, 4], "prompt_tokens": 64, "answer_tokens": 32, "requests": 20}
    with service.client(timeout=120) as client:
        done = client.evaluations.create(EMBEDDED_BASE, metrics="latency", load=load).wait(timeout=600)
    assert done.report is not None
    for one in done.report.loads or []:
        print(f"\n{one}")
        assert (one.failed, one.tokens) == (0, 20 * 32)
        assert one.first_token is not None
        assert one.whole is not None
        assert one.first_token.p50 < one.whole.p50
        assert one.price_per_million_tokens == pytest.approx(0.1 / 3600 / one.tokens_per_second * 1e6)
