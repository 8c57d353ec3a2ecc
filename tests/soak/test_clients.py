"""`make soak-clients`: instructor, pydantic-ai, LangChain and lm-evaluation-harness against the service.

They are installed in a folder of their own, which TUNEWRIGHT_CLIENTS names. LangChain's standard suite asks for
sensible answers, so it is run on an adapter that has learnt them from rows with the same requests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.engine.conftest import Service, engine_runs, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE, embedded_base_path

CLIENTS = os.environ.get("TUNEWRIGHT_CLIENTS")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(CLIENTS is None, reason="TUNEWRIGHT_CLIENTS names no folder"),
]

TASK = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{{{thing}}}} is"
doc_to_choice: [" blue", " green", " red", " yellow"]
doc_to_target: "{{{{color}}}}"
metric_list: [{{metric: acc}}]
"""
PROGRAMS = Path(__file__).parent / "client_programs"
LEFT_OUT = {
    "test_image_inputs": "the embedded base reads text only",
    "test_image_tool_message": "the embedded base reads text only",
    "test_audio_inputs": "the embedded base reads text only",
    "test_pdf_inputs": "no model of vLLM reads PDF files",
    "test_pdf_tool_message": "no model of vLLM reads PDF files",
    "test_anthropic_inputs": "messages in the form of Anthropic's API, which is not offered",
    "test_stream_time": "measures the client against recorded answers, not the service",
}
"""Tests of LangChain's suite that are skipped."""
LOOP = "asyncio_default_test_loop_scope=session"
"""LangChain's clients keep their connections, which belong to an event loop."""
BY_HEART = {"type": "lora", "rank": 16, "learning_rate": 3e-3, "batch_size": 16, "n_epochs": 3}
COLORS = {"sky": 0, "grass": 1, "lemon": 3, "heart": 2, "sea": 0, "leaf": 1, "sun": 3, "rose": 2}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_service(tmp_path_factory.mktemp("clients") / "data")
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """The output of a Python program that uses the clients' packages."""
    assert CLIENTS is not None, "else it is skipped"
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": CLIENTS,
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_structured_answers_of_three_libraries(service: Service, tmp_path: Path) -> None:
    said = run(tmp_path, str(PROGRAMS / "structured.py"), service.url, EMBEDDED_BASE)
    for library in ("instructor", "pydantic-ai", "LangChain", "LangChain tool", "LangChain stream"):
        assert f"\n{library} " in f"\n{said}"


@pytest.mark.timeout(1800)
def test_the_standard_suite_of_langchain_passes_on_a_tuned_model(service: Service, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(run(tmp_path, str(PROGRAMS / "langchain_rows.py")))
    with service.client(timeout=120) as client:
        job = client.jobs.create(
            model=EMBEDDED_BASE, training_file=rows, suffix="langchain", tuning=BY_HEART
        ).wait(timeout=1200)
        assert job.fine_tuned_model is not None
    results = tmp_path / "results.xml"
    run(
        tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", LOOP,
        "--noconftest",  # ours removes the variables
        f"--junitxml={results}", str(PROGRAMS / "langchain_standard.py"),
        TUNEWRIGHT_URL=service.url, TUNEWRIGHT_MODEL=job.fine_tuned_model, TUNEWRIGHT_BASE=EMBEDDED_BASE,
    )  # fmt: skip
    cases = ElementTree.parse(results).getroot().iter("testcase")
    skipped = {
        case.get("name", "").partition("[")[0]
        for case in cases
        for reason in case.iter("skipped")
        if reason.get("type") == "pytest.skip"
    }
    assert skipped == set(LEFT_OUT)


@pytest.mark.timeout(900)
def test_an_evaluation_harness_scores_in_batches_of_eight(service: Service, tmp_path: Path) -> None:
    runs = engine_runs(service)
    rows = tmp_path / "colors.jsonl"
    rows.write_text(
        "".join(json.dumps({"thing": thing, "color": color}) + "\n" for thing, color in COLORS.items())
    )
    (tmp_path / "colors.yaml").write_text(TASK.format(rows=rows))
    model = (
        f"model={EMBEDDED_BASE},base_url={service.url}/v1/completions,tokenizer={embedded_base_path()},"
        "num_concurrent=4,max_retries=1"
    )
    said = run(
        tmp_path, "-m", "lm_eval", "--model", "local-completions", "--model_args", model,
        "--tasks", "colors", "--include_path", str(tmp_path), "--batch_size", "8",
    )  # fmt: skip
    found = re.search(r"\|acc +\|\S* *\|([0-9. ]+)\|", said)
    assert found is not None
    assert float(found[1]) > 0.25, "better than by chance: the embedded base has learnt colors"
    assert engine_runs(service) == runs, "the engine is the same all the time"
