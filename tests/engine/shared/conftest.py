"""Tests of one service with a real vLLM, which starts before the first of them and ends after the last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import DEMO, FAST, Service, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Job, Tunewright


@pytest.fixture(scope="package")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base without a chat template."""
    folder = tmp_path_factory.mktemp("bases") / "plain"
    shutil.copytree(embedded_base_path(), folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, plain_base: Path) -> Iterator[Service]:
    running = start_service(
        tmp_path_factory.mktemp("service") / "data",
        "--base", f"{EMBEDDED_BASE}={embedded_base_path()}",
        "--base", f"plain={plain_base}",
        "--parity", "off",  # other tests need not wait for the parity check; test_parity and the demo have it on
    )  # fmt: skip
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="package")
def demo_files(service: Service) -> tuple[str, str]:
    with service.client() as client:
        return (
            client.files.upload(DEMO / "train.jsonl").id,
            client.files.upload(DEMO / "validation.jsonl").id,
        )


@pytest.fixture(scope="package")
def small_file(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """32 rows of the demo: a job on it takes seconds."""
    path = tmp_path_factory.mktemp("rows") / "small.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").open().readlines()[:32]))
    with service.client() as client:
        return client.files.upload(path).id


@pytest.fixture(scope="package")
def pirate(service: Service, demo_files: tuple[str, str]) -> Job:
    """A finished LoRA job that made the base talk like a pirate."""
    with service.client() as client:
        job = client.jobs.create(
            model=EMBEDDED_BASE,
            training_file=demo_files[0],
            validation_file=demo_files[1],
            suffix="pirate",
            seed=7,
            metadata={"team": "tests"},
            tuning=FAST,
        )
        return client.jobs.wait(job.id, timeout=240)


@pytest.fixture
def ask(client: Tunewright) -> Callable[[str, str], str]:
    def answer(model: str, question: str) -> str:
        completion = client.chat.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
        )
        return str(completion.text)

    return answer
