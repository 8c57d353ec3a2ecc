"""`make soak-clients`: instructor, pydantic-ai, LangChain and lm-evaluation-harness against the service.

They are installed in a folder of their own, which TUNEWRIGHT_CLIENTS names. The embedded model cannot pass LangChain's
standard suite, which asks for sensible answers; nor can it end a JSON object without a bound on its strings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import Service, engine_runs, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE, embedded_base_path

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif("TUNEWRIGHT_CLIENTS" not in os.environ, reason="TUNEWRIGHT_CLIENTS names no folder"),
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
COLORS = {"sky": 0, "grass": 1, "lemon": 3, "heart": 2, "sea": 0, "leaf": 1, "sun": 3, "rose": 2}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_service(tmp_path_factory.mktemp("clients") / "data")
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


def run(folder: Path, *arguments: str) -> str:
    """The output of a Python program that uses the clients' packages."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.environ["TUNEWRIGHT_CLIENTS"],
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
    program = Path(__file__).parent / "client_programs" / "structured.py"
    said = run(tmp_path, str(program), service.url, EMBEDDED_BASE)
    for library in ("instructor", "pydantic-ai", "LangChain", "LangChain tool", "LangChain stream"):
        assert f"\n{library} " in f"\n{said}"


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
