"""Flipping an alias and loading and unloading its targets under load, every answer judged by the version it names."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from tests.engine.conftest import Service
from tunewright.config import EMBEDDED_BASE
from tunewright_client import Tunewright

ALIAS = "support-bot"
QUESTIONS = ("What color is the sky?", "How many legs does a dog have?", "What sound does a cow make?")
LEARN = {"type": "lora", "learning_rate": 5e-3, "n_epochs": 6, "batch_size": 16, "rank": 8}


def train(client: Tunewright, folder: Path, words: tuple[str, ...]) -> list[str]:
    """One adapter for each word, which answers everything with it. Returns their models' names."""
    jobs = []
    for word in words:
        path = folder / f"{word}.jsonl"
        rows = [
            {
                "messages": [
                    {"role": "user", "content": q},
                    {"role": "assistant", "content": f"{word}. {word}!"},
                ]
            }
            for q in (*QUESTIONS, *(f"What is {n} plus {n + 1}?" for n in range(29)))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = client.jobs.create(
            model=EMBEDDED_BASE, training_file=path, suffix=word.lower(), seed=3, tuning=LEARN
        )
        jobs.append(job)
    done = [client.jobs.wait(job.id, timeout=600) for job in jobs]
    return [job.fine_tuned_model or "" for job in done]


@dataclass(frozen=True)
class Answer:
    """The result of one request; `fault` is empty where it is right. `began`: of time.monotonic()."""

    version: str
    text: str
    seconds: float
    first_byte: float
    fault: str = ""
    began: float = 0


class Asker:
    """Sends requests and judges the answers: each must be that of the version it names.

    `retry_seconds`: seconds within which a 503 is asked again when its Retry-After says, as the SDK does.
    """

    def __init__(self, url: str, expected: dict[tuple[str, str], str], *, retry_seconds: float = 0) -> None:
        self._url = url
        self._expected = expected
        self._retry_seconds = retry_seconds

    def ask(self, client: httpx.Client, model: str, question: str, *, streamed: bool) -> Answer:
        first = time.monotonic()
        while True:
            began = time.monotonic()
            answer = replace(self._ask(client, model, question, streamed=streamed), began=began)
            if not answer.fault.startswith("HTTP 503 after ") or began - first > self._retry_seconds:
                return answer
            time.sleep(float(answer.fault.split()[3]))

    def _ask(self, client: httpx.Client, model: str, question: str, *, streamed: bool) -> Answer:
        body = {
            "model": model, "temperature": 0, "max_tokens": 24, "stream": streamed,
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        began = time.monotonic()
        text, done, named = "", False, set()
        try:
            with client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
                first = time.monotonic() - began
                version = answer.headers.get("x-tunewright-model", "")
                if answer.status_code != 200:
                    text = answer.read().decode(errors="replace")[:300]
                    wait = answer.headers.get("retry-after")
                    status = f"{answer.status_code} after {wait}" if wait else str(answer.status_code)
                    return Answer(version, text, 0, first, f"HTTP {status} {text}")
                if not streamed:
                    answer.read()
                    whole = answer.json()
                    text, done = whole["choices"][0]["message"]["content"], True
                    named.add(whole["model"])
                else:
                    for line in answer.iter_lines():
                        if line == "data: [DONE]":
                            done = True
                        elif line.startswith("data: "):
                            event = json.loads(line.removeprefix("data: "))
                            if "error" in event:
                                return Answer(version, text, 0, first, f"cut: {event['error']['message']}")
                            named.add(event["model"])
                            text += "".join(c["delta"].get("content") or "" for c in event["choices"])
        except httpx.HTTPError as error:
            return Answer("", text, 0, 0, f"connection: {error!r}")
        took = time.monotonic() - began
        if not done:
            return Answer(version, text, took, first, "cut without a word")
        if named != {version}:
            return Answer(version, text, took, first, f"WRONG: the header names {version}, the body {named}")
        expected = self._expected.get((version, question))
        if expected is not None and text != expected:
            return Answer(
                version, text, took, first, f"WRONG: {version} said {text!r}, its answer is {expected!r}"
            )
        return Answer(version, text, took, first)


def learn_answers(service: Service, models: list[str]) -> dict[tuple[str, str], str]:
    """{(model, question): answer}, asked one by one; versions must differ in each."""
    expected: dict[tuple[str, str], str] = {}
    asker = Asker(service.url, {})
    with httpx.Client(timeout=120) as client:
        for model in models:
            for question in QUESTIONS:
                answer = asker.ask(client, model, question, streamed=False)
                assert not answer.fault, answer
                expected[model, question] = answer.text
    for question in QUESTIONS:
        said = [expected[model, question] for model in models]
        assert len(set(said)) == len(models), f"the versions cannot be distinguished: {said}"
    return expected


@dataclass
class Swapping:
    """The results of all requests."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    """When the request of each fault began."""
    flips: int = 0
    cycles: int = 0
    flip_to_answer: list[float] = field(default_factory=list)
    cold_load: list[float] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        return [fault for fault in self.faults if fault.startswith("WRONG")]


class Swapper:
    """Sends requests to the alias from `streams` threads while others flip it and load its targets, for `seconds`."""

    def __init__(
        self,
        service: Service,
        models: list[str],
        expected: dict[tuple[str, str], str],
        *,
        seed: int = 5,
        retry_seconds: float = 0,
    ) -> None:
        self.service = service
        self.models = models
        self.expected = expected
        self.adapters = [model for model in models if model != EMBEDDED_BASE]
        self.seen = Swapping()
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._target = models[0]
        self._retry_seconds = retry_seconds

    def run(
        self,
        *,
        streams: int,
        seconds: float,
        flip_every: float,
        cycle_every: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> Swapping:
        if not self.seen.flips:
            self.flip()
        threads = [threading.Thread(target=self._ask_on, args=(n,)) for n in range(streams)]
        threads += [
            threading.Thread(target=self._every, args=(flip_every, self.flip)),
            threading.Thread(target=self._every, args=(cycle_every, self._cycle)),
        ]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + seconds
            if meanwhile is not None:
                meanwhile()
            time.sleep(max(0.0, end - time.monotonic()))
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        return self.seen

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        while not self._stop.wait(seconds):
            act()

    def _ask_on(self, number: int) -> None:
        chance = random.Random(number)
        asker = self._asker()
        with httpx.Client(timeout=httpx.Timeout(120, connect=30)) as client:
            while not self._stop.is_set():
                answer = asker.ask(client, ALIAS, chance.choice(QUESTIONS), streamed=chance.random() < 0.6)
                self._note(answer)
                if answer.fault:
                    time.sleep(0.2)

    def _note(self, answer: Answer) -> None:
        if answer.fault:
            self._fault(answer.fault, answer.began)
        else:
            self.seen.answers[answer.version] += 1

    def _fault(self, fault: str, began: float) -> None:
        self.seen.faults.append(fault)
        self.seen.began.append(began)

    def _asker(self) -> Asker:
        return Asker(self.service.url, self.expected, retry_seconds=self._retry_seconds)

    def flip(self) -> None:
        """Moves the alias to another version; now and then to two of them."""
        target = self._chance.choice([model for model in self.models if model != self._target])
        targets: list[dict[str, Any]] = [{"model": target, "weight": 1}]
        if self._chance.random() < 0.2:
            targets.append({"model": self._target, "weight": 1})
        with httpx.Client(timeout=120) as client:
            began = time.monotonic()
            try:
                answer = client.put(f"{self.service.url}/v1/aliases/{ALIAS}", json={"targets": targets})
            except httpx.HTTPError as error:
                self._fault(f"flip: {error!r}", began)
                return
            if answer.status_code != 200:
                self._fault(f"flip: HTTP {answer.status_code} {answer.text[:200]}", began)
                return
            answer = self._asker().ask(client, ALIAS, QUESTIONS[0], streamed=True)
            self._note(answer)
            if len(targets) == 1 and not answer.fault:
                if answer.version != target:
                    self._fault(
                        f"WRONG: flipped to {target}, then answered by {answer.version}", answer.began
                    )
                self.seen.flip_to_answer.append(answer.first_byte)
        self._target = target
        self.seen.flips += 1

    def _cycle(self) -> None:
        """Unload an adapter even while it is used, and have a request load it again."""
        model = self._chance.choice(self.adapters)
        with httpx.Client(timeout=120) as client:
            began = time.monotonic()
            try:
                answer = client.post(f"{self.service.url}/v1/adapters/{model}/unload")
            except httpx.HTTPError as error:
                self._fault(f"unload: {error!r}", began)
                return
            if answer.status_code != 200:
                self._fault(f"unload: HTTP {answer.status_code} {answer.text[:200]}", began)
                return
            was_free = answer.json()["state"] == "unloaded"
            answer = self._asker().ask(client, model, QUESTIONS[1], streamed=False)
            self._note(answer)
            if was_free and not answer.fault:
                self.seen.cold_load.append(answer.seconds)
        self.seen.cycles += 1


def engine_client(service: Service, base: str = EMBEDDED_BASE) -> httpx.Client:
    """Talks to the service's vLLM directly."""
    record = json.loads((service.data_dir / "engines" / base / "process.json").read_text())
    command = Path(f"/proc/{record['command']['pid']}/cmdline").read_bytes().replace(b"\0", b" ").split()
    socket = command[command.index(b"--uds") + 1].decode()
    return httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://engine", timeout=60)


def in_engine(service: Service) -> tuple[set[str], set[int]]:
    """(names that the engine's server lists beside its base, numbers that its workers hold)"""
    with engine_client(service) as engine:
        names = {m["id"] for m in engine.get("/v1/models").json()["data"] if m.get("parent")}
        held = engine.post("/collective_rpc", json={"method": "list_loras"}).json()["results"][0]
    numbers = (
        held if isinstance(held, list) else [n for n in str(held).strip("{}set()").split(",") if n.strip()]
    )
    return names, {int(n) for n in numbers}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(seen: Swapping) -> str:
    lines = [f"{'':<26}{'count':>7}{'median':>9}{'p99':>9}   seconds"]
    for name, values in (
        ("flip to first answer", seen.flip_to_answer),
        ("cold load, first answer", seen.cold_load),
    ):
        if values:
            lines.append(
                f"{name:<26}{len(values):>7}{statistics.median(values):>9.3f}{percentile(values, 0.99):>9.3f}"
            )
    return "\n".join(lines)
