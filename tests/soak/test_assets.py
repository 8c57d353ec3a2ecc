"""Real files of every format through upload, check, report, plan and, where a method learns from them, a short job: on
the embedded base, and on two small models without a chat template.

Needs TUNEWRIGHT_ASSETS (real models and data, which are not the project's own). The engine is a stand-in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE, start_without_vllm, wait_engine
from tunewright.config import embedded_base_path
from tunewright_client import Tunewright, TunewrightError

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
ASSETS = Path(os.environ.get("TUNEWRIGHT_ASSETS", "/nonexistent"))
if not (ASSETS / "models/stories260K").is_dir():
    pytest.skip("TUNEWRIGHT_ASSETS is not set or has no models/stories260K", allow_module_level=True)
DATA = ASSETS / "data"
LENGTHS, ROWS = {BASE: 128, "stories": 256, "babyllama": 256}, 40
"""Tokens to which rows are cut, and rows of the short jobs. The tokens of babyllama are characters, of which Alpaca's
prompt alone has more than 128."""
TEMPLATE = (embedded_base_path() / "chat_template.jinja").read_text()


@dataclass(frozen=True)
class File:
    """A file, and what the service is expected to find in it."""

    path: str
    container: str
    format: str
    kind: str
    rows: int
    method: str
    """That learns from it."""
    has_messages: bool
    """Whether its rows need a chat template."""
    data: dict[str, Any] = field(default_factory=dict)

    def first(self, count: int, folder: Path) -> Path:
        """A file of its first rows, in the same container."""
        text = (DATA / self.path).read_text()
        made = folder / Path(self.path).name
        if self.container == "jsonl":
            made.write_text("".join(text.splitlines(keepends=True)[:count]))
        else:
            made.write_text(json.dumps(json.loads(text)[:count]))
        return made


FILES = {
    "gsm8k": File(
        "gsm8k/train.jsonl", "jsonl", "prompt_completion", "prompt_completion", 7473, "supervised", False,
        {"columns": {"prompt": "question", "completion": "answer"}},
    ),
    "alpaca": File("llamafactory/alpaca_en_demo.json", "json", "alpaca", "chat", 999, "supervised", False),
    "identity": File("llamafactory/identity.json", "json", "alpaca", "chat", 91, "supervised", False),
    "preference": File("llamafactory/dpo_en_demo.json", "json", "sharegpt", "preference", 300, "dpo", True),
    "kto": File("llamafactory/kto_en_demo.json", "json", "trl_kto", "labelled", 300, "kto", True),
    "tools": File("llamafactory/glaive_toolcall_en_demo.json", "json", "sharegpt", "chat", 300, "supervised", True),
    "text": File("llamafactory/c4_demo.jsonl", "jsonl", "text", "text", 300, "supervised", False),
}  # fmt: skip
MODELS = (BASE, "stories", "babyllama")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    more = {"stories": "stories260K", "babyllama": "babyllama-tok105"}
    bases = [
        part for name, folder in more.items() for part in ("--base", f"{name}={ASSETS / 'models' / folder}")
    ]
    started = start_without_vllm(tmp_path_factory.mktemp("assets") / "data", *bases)
    try:
        for model in MODELS:
            wait_engine(started, model)
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=600) as made:
        yield made


@pytest.fixture(scope="module")
def uploaded(client: Tunewright) -> dict[str, str]:
    """The ids of the whole files, once they are checked."""
    ids = {name: client.files.upload(DATA / file.path).id for name, file in FILES.items()}
    for id in ids.values():
        wait_until(lambda id=id: client.files.retrieve(id).status != "uploaded", 600, "the check")
    return ids


@pytest.mark.parametrize("name", FILES)
def test_the_format_is_recognised(client: Tunewright, uploaded: dict[str, str], name: str) -> None:
    file = FILES[name]
    report = client.files.report(uploaded[name], columns=file.data.get("columns"))
    found = (report.container, report.format, report.kind, report.rows)
    assert found == (file.container, file.format, file.kind, file.rows)
    assert report.characters is not None or file.kind != "text"
    status = client.files.retrieve(uploaded[name]).status
    assert status == ("error" if file.data else "processed"), "other columns are named by the job"
    assert client.files.report_picture(uploaded[name], columns=file.data.get("columns")).startswith("<svg")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FILES)
def test_report_plan_and_a_short_job(
    client: Tunewright, uploaded: dict[str, str], tmp_path: Path, name: str, model: str
) -> None:
    file, id = FILES[name], uploaded[name]
    tuning = {"type": "lora", "max_length": LENGTHS[model], "n_epochs": 1, "batch_size": 16, "rank": 4}
    asked: dict[str, Any] = {
        "model": model, "method": file.method, "tuning": tuning, "data": file.data or None
    }  # fmt: skip
    needs_template = file.has_messages and model != BASE
    if needs_template:
        with pytest.raises(TunewrightError, match="chat_template"):
            client.jobs.create(training_file=file.first(8, tmp_path), **asked).wait(timeout=120)
        asked["chat_template"] = TEMPLATE
    template = asked.get("chat_template")
    columns = file.data.get("columns")
    report = client.files.report(
        id, model, max_length=LENGTHS[model], columns=columns, chat_template=template
    )
    assert report.tokens is not None
    assert 0 < report.tokens.trained <= report.tokens.tokens
    assert report.samples, "rows with their trained tokens marked"
    errors = [problem for problem in report.problems if problem.severity == "error"]
    assert not errors, errors
    plan = client.jobs.plan(training_file=id, **asked)
    assert plan.fits
    assert plan.rows == file.rows
    assert plan.tokens == report.tokens.tokens, "without examples of which nothing is left to learn"
    job = client.jobs.create(training_file=file.first(ROWS, tmp_path), seed=1, **asked).wait(timeout=600)
    assert job.status == "succeeded"
    assert job.measured is not None
    assert job.planned is not None
    assert job.planned.tokens == job.trained_tokens
    print(
        f"{name} on {model}: {plan.rows} rows, {plan.tokens} tokens an epoch; the job {job.trained_tokens} tokens in "
        f"{job.measured.seconds:.1f} s"
    )
