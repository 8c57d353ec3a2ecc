"""The demo's summary: measured losses and times, the answers, and commands to try."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from tunewright.cli.output import Output, number
from tunewright_client import JobEvent


@dataclass
class Losses:
    """The first and last losses of a job in nats per token, from its events."""

    first_train: float | None = None
    last_train: float | None = None
    valid_before: float | None = None
    valid_after: float | None = None

    def add(self, event: JobEvent) -> None:
        """Add the next event, oldest first. The validation loss before the first step is in the data of a message."""
        valid = (event.data or {}).get("valid_loss")
        if (metrics := event.metrics) is not None and metrics.train_loss is not None:
            self.first_train = metrics.train_loss if self.first_train is None else self.first_train
            self.last_train = metrics.train_loss
        if valid is not None:
            self.valid_before = valid if self.valid_before is None else self.valid_before
            self.valid_after = valid


@dataclass(frozen=True)
class Answer:
    """One question with the answers of the base and of the adapter."""

    question: str
    base: str
    adapter: str

    @property
    def differs(self) -> bool:
        """Whether the answers have different words; case, spaces and punctuation are ignored."""
        return bool(_words(self.adapter)) and _words(self.base) != _words(self.adapter)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


@dataclass
class Phases:
    """The duration of each phase in seconds, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the duration of the block; not recorded where it raises."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def print_results(
    out: Output, base: str, model: str, answers: Sequence[Answer], losses: Losses, phases: Phases
) -> None:
    """Print both answers to each question side by side, then the losses and durations."""
    out.table(
        ["QUESTION", f"BASE {base}", f"ADAPTER {model}"],
        [(answer.question, answer.base, answer.adapter) for answer in answers],
        lines=True,
    )
    out.table(
        ["LOSS", "BEFORE", "AFTER"],
        [
            ("training", number(losses.first_train), number(losses.last_train)),
            ("validation", number(losses.valid_before), number(losses.valid_after)),
        ],
    )
    total = ("total", sum(phases.seconds.values()))
    out.table(["PHASE", "SECONDS"], [(name, f"{s:.1f}") for name, s in [*phases.seconds.items(), total]])


def print_snippets(url: str, model: str, question: str) -> None:
    """Print commands to paste, so without wrapping or colours."""
    body = json.dumps({"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]})
    click.echo(
        f"""Ask it yourself:

curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d {shlex.quote(body)}

from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
answer = client.chat.completions.create(
    model={json.dumps(model)},
    messages=[{{"role": "user", "content": {json.dumps(question)}}}],
    temperature=0,
)
print(answer.choices[0].message.content)
"""
    )
