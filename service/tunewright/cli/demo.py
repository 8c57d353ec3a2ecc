"""`tunewright demo`: serve, fine-tune and compare once, with the embedded base and data.

A demo that shows no difference has failed: it exits with 0 only when the adapter answers every question differently
from the base.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.status import Status

from tunewright.cli.demo_service import DemoError, DemoService, Interrupts
from tunewright.cli.demo_summary import Answer, Losses, Phases, print_results, print_snippets
from tunewright.cli.options import examples
from tunewright.cli.output import Output, plain
from tunewright.cli.progress import view_for, watch_job
from tunewright.config import EMBEDDED_BASE
from tunewright_client import APIConnectionError, Job, JobError, Tunewright, TunewrightError

DATA = Path(__file__).parents[1] / "embedded" / "demo"
SUFFIX = "pirate"
SEED = 7
TUNING: dict[str, Any] = {"type": "lora", "rank": 16, "learning_rate": 3e-3, "n_epochs": 2, "batch_size": 16}
"""A base of 4M parameters needs a larger learning rate than the 2e-4 of large ones. Measured on two CPU cores: 30 steps
in 26 s with loading; held-out loss 1.557 before, 0.003 after. Three epochs at 5e-3 took 39 s and ended at 0.009."""
MAX_TOKENS = 48
READY_SECONDS = 600.0
LOAD_SECONDS = 120.0
POLL_SECONDS = 0.25
ENGINE_FAILURES = 3
"""Failed starts of an engine after which the demo gives up."""


@click.command(
    short_help="See everything once: serve, fine-tune, compare.",
    epilog=examples(
        "tunewright demo",
        "tunewright demo --keep        and ask the result questions of your own",
    ),
)
@click.option("--keep", is_flag=True, help="Leave the service running at the end, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of its service.  [default: a free one]")
def demo(keep: bool, port: int | None) -> int:
    """Start a service, fine-tune the embedded base on it, and compare before and after.

    It takes about two minutes on two CPU cores, needs no network, and leaves nothing behind: its data is in a
    temporary folder. A base of 4 million parameters learns from 240 rows to speak like a pirate.
    """
    out = Output()
    with Interrupts() as interrupts:
        service = DemoService(port, interrupts)
        try:
            _show(out, service, keep)
            return 0
        except Exception as error:
            _print_failure(out, service, error)
            return 1
        finally:
            interrupts.ignore()
            with out.stderr.status("Stopping the service"):
                service.stop()


def _show(out: Output, service: DemoService, keep: bool) -> None:
    phases, losses = Phases(), Losses()
    with phases.phase("start the service"), _spinner(out, "Starting the service") as spinner:
        service.start()
        with Tunewright(service.url, api_key="", max_retries=0) as probe:
            _wait_ready(probe, service, spinner)
    out.note(f"The service is ready at {service.url}")
    with Tunewright(service.url, api_key="") as client:
        with phases.phase("upload"):
            training = client.files.upload(DATA / "train.jsonl")
            validation = client.files.upload(DATA / "validation.jsonl")
        with phases.phase("train"):
            job = _train(out, client, service, training.id, validation.id, losses)
        model = job.fine_tuned_model
        if model is None:
            raise DemoError(f"{job.id} has succeeded without a model")
        with phases.phase("load the adapter"), _spinner(out, f"Loading {model}") as spinner:
            _wait_loaded(client, service, model, spinner)
        questions: list[str] = json.loads((DATA / "questions.json").read_text(encoding="utf-8"))
        with phases.phase("ask"), _spinner(out, "Asking the base and the adapter") as spinner:
            answers = [Answer(q, _ask(client, EMBEDDED_BASE, q), _ask(client, model, q)) for q in questions]
    print_results(out, EMBEDDED_BASE, model, answers, losses, phases)
    same = [answer.question for answer in answers if not answer.differs]
    if same:
        raise DemoError(f"the adapter answers like the base: {'; '.join(same)}")
    print_snippets(service.url, model, questions[0])
    if not keep:
        click.echo(
            "These work while the service is up: `tunewright demo --keep` leaves it up, and `make serve` or\n"
            "`tunewright serve` starts one of your own."
        )
        return
    click.echo(f"The service is up at {service.url} until Ctrl-C. Its log is {service.log_file}.")
    _wait_for_interrupt(service)


def _wait_ready(client: Tunewright, service: DemoService, spinner: Status) -> None:
    began, failures, states = time.monotonic(), 0, dict[str, str | None]()
    while True:
        service.check()
        try:
            state = client.ready()
            if state.ready:
                return
            waiting = []
            for name, part in state.components.items():
                if not part.ready:
                    waiting.append(f"{name} ({part.reason or part.state or 'not ready'})")
                failures += part.state == "backoff" != states.get(name)
                states[name] = part.state
        except APIConnectionError:
            waiting = ["api"]
        elapsed = time.monotonic() - began
        reason = ", ".join(waiting) or "all components"
        if failures >= ENGINE_FAILURES or elapsed > READY_SECONDS:
            raise DemoError(f"the service is not ready after {elapsed:.0f} s; waiting for {reason}")
        spinner.update(f"Starting the service: {plain(reason)}, {elapsed:.0f} s")
        time.sleep(POLL_SECONDS)


def _train(
    out: Output, client: Tunewright, service: DemoService, training: str, validation: str, losses: Losses
) -> Job:
    job = client.jobs.create(EMBEDDED_BASE, training, validation, tuning=TUNING, suffix=SUFFIX, seed=SEED)
    out.note(f"Fine-tuning {EMBEDDED_BASE} with LoRA: {job.id}")
    with view_for(out) as view:

        def on_event(event: Any) -> None:
            losses.add(event)
            view(event)

        return watch_job(client.jobs.wait, job.id, on_event, service.check)


def _wait_loaded(client: Tunewright, service: DemoService, model: str, spinner: Status) -> None:
    """Wait until the adapter of the job is loaded, which the service does by itself. Raises DemoError."""
    began = time.monotonic()
    while True:
        service.check()
        adapter = client.adapters.retrieve(model)
        if adapter.state == "loaded":
            return
        elapsed = time.monotonic() - began
        if adapter.state == "failed" or elapsed > LOAD_SECONDS:
            why = adapter.error or "no reason given"
            raise DemoError(f"{model} is {adapter.state} after {elapsed:.0f} s: {why}")
        spinner.update(f"Loading {plain(model)}, {elapsed:.0f} s")
        time.sleep(POLL_SECONDS)


def _ask(client: Tunewright, model: str, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return client.chat.create(model, messages, temperature=0, max_tokens=MAX_TOKENS).text.strip()


def _wait_for_interrupt(service: DemoService) -> None:
    try:
        while True:
            service.check()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # the regular end of `--keep`
        click.echo(err=True)


@contextmanager
def _spinner(out: Output, text: str) -> Iterator[Status]:
    """Show a spinner at a terminal, and print a line in a pipe."""
    if not out.stderr.is_terminal:
        out.note(text)
    with out.stderr.status(text) as status:
        yield status


def _print_failure(out: Output, service: DemoService, error: Exception) -> None:
    known = isinstance(error, DemoError | TunewrightError | OSError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    if isinstance(error, JobError):
        reason = f"{error.job.id} {error.job.status}: {error}"
    out.note(f"error: the demo failed: {reason}")
    tail = service.log_tail()
    if tail:
        out.note("The service's last lines:")
        for line in tail:
            out.note(f"  {line}")
