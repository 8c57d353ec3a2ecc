"""Kills a service's processes while it trains and answers, and checks that nothing is lost or wrong."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.engine.conftest import DEMO, Service, processes_of, start_service
from tunewright.config import EMBEDDED_BASE
from tunewright.registry.content import adapter_sha256
from tunewright_client import Job, Tunewright

ROLES = {
    "api": r"^tunewright: api",
    "standby": r"^tunewright: standby of the api",
    "engine worker": r"^tunewright: engine worker",
    "queues": r"multiprocessing|^tunewright: api",  # LitServe's: its parent distinguishes it from the api
    "scheduler": r"^tunewright: scheduler",
    "trainer": r"^tunewright: trainer",
    "cleaner": r"^tunewright: clean",
    "fork server": r"^tunewright: fork server",
    "lifeline": r"^tunewright: lifeline",
    "vLLM server": r"vllm\.entrypoints",
    "EngineCore": r"^VLLM::EngineCore",
}
"""The role of a process by its command line."""
STOPPED = {f"stopped {role}": role for role in ("api", "engine worker", "queues", "scheduler")}
"""Not killed but stopped (SIGSTOP): they hang, and the service has to notice. Give it a short `--hang-timeout`."""
WHOLE = ("supervisor", "everything")
BREAKS_GENERATION = ("vLLM server", "EngineCore", *WHOLE)


def tree(root: int) -> dict[int, tuple[int, str]]:
    """{pid: (parent, command line)} of a process and its living descendants."""
    everyone = living()
    found, grew = {root}, True
    while grew:
        more = {pid for pid, (parent, _) in everyone.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return {pid: everyone[pid] for pid in found if pid in everyone}


def living() -> dict[int, tuple[int, str]]:
    """{pid: (parent, command line)} of all processes."""
    everyone: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
            if state not in "ZX":
                everyone[int(folder.name)] = (int(parent), line)
    return everyone


def orphans(service: Service) -> dict[int, tuple[int, str]]:
    """The trainers of the service, also those whose fork server was killed."""
    trainer = re.compile(r"^tunewright: trainer (\S+)")
    return {
        pid: (parent, line)
        for pid, (parent, line) in living().items()
        if (title := trainer.match(line)) and (service.data_dir / "jobs" / title[1]).exists()
    }


def find(service: Service, role: str) -> list[int]:
    """Process ids of a role, oldest first."""
    role = STOPPED.get(role, role)
    processes = tree(service.process.pid) | orphans(service)
    if role == "supervisor":
        return [service.process.pid]
    if role == "everything":
        return sorted(processes)
    matching = [pid for pid, (_, line) in processes.items() if re.search(ROLES[role], line)]
    apis = {pid for pid, (_, line) in processes.items() if line.startswith("tunewright: api")}
    if role == "api":
        return sorted(pid for pid in matching if processes[pid][0] not in apis)
    if role == "queues":
        return sorted(
            pid
            for pid in matching
            if processes[pid][0] in apis and "resource_tracker" not in processes[pid][1]
        )
    return sorted(matching)


def kill(service: Service, role: str) -> list[int]:
    """kill -9 (or stop) one process of the role, or all at once; empty where no such process runs now."""
    victims = find(service, role)
    if not victims:
        return []
    if role == "everything":
        for pid in victims:  # stopped first, so that none notices that another has ended
            _send(pid, signal.SIGSTOP)
    else:
        victims = [random.choice(victims)]
    for pid in victims:
        _send(pid, signal.SIGSTOP if role in STOPPED else signal.SIGKILL)
    if role in WHOLE:
        service.process.wait(10)
    return victims


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def again(service: Service) -> Service:
    """Start the service again on its data folder and port, once the old one's processes are gone."""
    deadline = time.monotonic() + 10
    while left := processes_of(service):
        assert time.monotonic() < deadline, f"outlived the supervisor: {left}"
        time.sleep(0.05)
    return start_service(
        service.data_dir,
        *service.arguments,
        port=int(service.url.rsplit(":", 1)[1]),
        environment=service.environment,
    )


# generation


@dataclass
class Question:
    model: str
    text: str
    expected: str = ""


class Askers:
    """Threads that send requests, streamed and whole, and judge every answer; `pause`: seconds after a right one.

    `bad` holds what must never happen: a wrong answer, a cut one that looks complete, an unexpected refusal, a hang.
    """

    def __init__(self, url: str, questions: list[Question], threads: int = 3, pause: float = 0) -> None:
        self._url = url
        self._questions = questions
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)]
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(150)
            if thread.is_alive():
                self.bad.append("an asker hangs")

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.is_set():
            question, streamed = chance.choice(self._questions), chance.random() < 0.5
            outcome = ask(self._url, question, streamed=streamed)
            self.counts[outcome.partition(":")[0]] += 1
            if outcome.startswith("bad"):
                self.bad.append(f"{outcome} ({question.model}, streamed={streamed})")
            self._stop.wait(self._pause if outcome == "right" else max(self._pause, 0.3))


def ask(url: str, question: Question, *, streamed: bool) -> str:
    """right | refused (503, with Retry-After) | cut (an error event, or a lost connection) | unreachable | bad: why."""
    body = {
        "model": question.model, "temperature": 0, "max_tokens": 48, "stream": streamed,
        "messages": [{"role": "user", "content": question.text}],
    }  # fmt: skip
    began = time.monotonic()
    try:
        with httpx.Client(timeout=httpx.Timeout(120, connect=30)) as client:
            text, done = "", False
            with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    return _refusal(answer)
                if not streamed:
                    answer.read()
                    text, done = answer.json()["choices"][0]["message"]["content"], True
                else:
                    for line in answer.iter_lines():
                        if not line.startswith("data: "):
                            continue
                        if line == "data: [DONE]":
                            done = True
                            continue
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            return "cut"
                        for choice in event["choices"]:
                            text += choice["delta"].get("content") or ""
    except httpx.ConnectError:
        return "unreachable"
    except httpx.TimeoutException:
        return f"bad: no answer within {time.monotonic() - began:.0f} s"
    except httpx.TransportError:
        return "cut"
    if not done:
        return f"bad: cut, and it looked complete: {text!r}"
    if question.expected and text != question.expected:
        return f"bad: answered {text!r}, expected {question.expected!r}"
    question.expected = question.expected or text
    return "right"


def _refusal(answer: httpx.Response) -> str:
    text = answer.read().decode(errors="replace")[:300]
    if answer.status_code == 503 and answer.headers.get("retry-after"):
        return "refused"
    return f"bad: HTTP {answer.status_code} {text}"


# training


@dataclass
class Training:
    """The events and the adapter of a job, to be compared with another run of it."""

    losses: dict[int, tuple[Any, ...]]
    doubled: list[int]
    sha256: str

    @classmethod
    def of(cls, client: Tunewright, service: Service, job: Job) -> Training:
        metrics = [e.data for e in client.jobs.stream_events(job.id) if e.type == "metrics" and e.data]
        steps = [data["step"] for data in metrics]
        names = ("train_loss", "valid_loss", "grad_norm", "learning_rate")
        model = client.adapters.retrieve(job.fine_tuned_model or "")
        folder = next(
            path for path in (service.data_dir / "artifacts").iterdir() if path.name == model.sha256
        )
        return cls(
            {data["step"]: tuple(data.get(name) for name in names) for data in metrics},
            [step for step, count in Counter(steps).items() if count > 1],
            adapter_sha256(folder),
        )


def submit(
    client: Tunewright, files: tuple[str, str], name: str, base: str = EMBEDDED_BASE, **tuning: Any
) -> Job:
    """Create a job, repeating the request with the same key until the service answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.jobs.create(
                model=base,
                training_file=files[0],
                validation_file=files[1],
                suffix="kill",
                seed=11,
                tuning=tuning,
                idempotency_key=name,
                metadata={"name": name},
            )
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def upload_rows(client: Tunewright, folder: Path, rows: int) -> tuple[str, str]:
    """(training file, validation file) with the first `rows` rows of the demo."""
    path = folder / "rows.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").open().readlines()[:rows]))
    return client.files.upload(path).id, client.files.upload(DEMO / "validation.jsonl").id


# recovery


@dataclass
class Recoveries:
    """Seconds from a kill until what it broke worked again, by role."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> str:
        lines = [f"{'killed':<22}{'kills':>6}{'min':>8}{'median':>8}{'max':>8}   until"]
        for role, times in sorted(self.seconds.items()):
            lines.append(
                f"{role:<22}{len(times):>6}{min(times):>8.1f}{statistics.median(times):>8.1f}{max(times):>8.1f}"
                f"   {UNTIL[role]}"
            )
        return "\n".join(lines)


UNTIL = {
    "api": "a new one answers GET /health",
    "standby": "another one waits",
    "engine worker": "an adapter is loaded by hand",
    "queues": "an adapter is loaded by hand",
    "scheduler": "a new one has taken over",
    "trainer": "the job tells a new step, or has ended",
    "fork server": "the job tells a new step, or has ended",
    "lifeline": "a new one watches the group",
    "vLLM server": "the adapter answers, and rightly",
    "EngineCore": "the adapter answers, and rightly",
    "supervisor": "started again, the adapter answers, and rightly",
    "everything": "started again, the adapter answers, and rightly",
}
UNTIL |= {stopped: UNTIL[role] for stopped, role in STOPPED.items()}


def recovered(service: Service, role: str, before: list[int], adapter: Question, step: int) -> bool:
    """Whether what killing `role` broke works again; `before`: its processes then, `step`: the job's last."""
    role = STOPPED.get(role, role)
    try:
        if role == "api":
            anew = bool(set(find(service, role)) - set(before))
            return anew and httpx.get(f"{service.url}/health", timeout=5, verify=False).status_code == 200
        if role in ("engine worker", "queues"):
            path = f"{service.url}/v1/adapters/{adapter.model}/load"
            return (
                bool(set(find(service, role)) - set(before))
                and httpx.post(path, timeout=60, verify=False).status_code == 200
            )
        if role in ("scheduler", "lifeline", "standby"):
            return bool(set(find(service, role)) - set(before))
        if role in ("trainer", "fork server"):
            url = f"{service.url}/v1/fine_tuning/jobs"
            job = httpx.get(url, params={"limit": 1}, timeout=10, verify=False).json()["data"][0]
            return job["status"] == "succeeded" or ((job.get("progress") or {}).get("step") or 0) > step
        return ask(service.url, adapter, streamed=False) == "right"
    except httpx.HTTPError:
        return False


def wait_recovered(
    service: Service, role: str, before: list[int], adapter: Question, step: int = 0, timeout: float = 180
) -> float:
    """Seconds until `recovered`."""
    began = time.monotonic()
    while not recovered(service, role, before, adapter, step):
        assert time.monotonic() - began < timeout, (
            f"{role} was killed, and after {timeout} s: not {UNTIL[role]}"
        )
        time.sleep(0.1)
    return time.monotonic() - began
