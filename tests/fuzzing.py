"""Schemathesis over every operation of a running service: each answer must be as the OpenAPI document says.

Generated ids do not exist, so half of the requests name objects that the service has.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection

TIMEOUT = 60.0
_KEPT = 3
"""Models, say, that are left for other requests."""
_ROOT = Path(__file__).resolve().parents[1]
_GENERATIONS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/tokenize")
_CONFIG = {
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503"]},
        # a file, a job or a model that a valid request names must also exist
        "positive_data_acceptance": {"enabled": False},
    },
}


TRIED_THREE_TIMES = pytest.mark.flaky(reruns=2)
"""For tests with bounds on time, which a busy machine may exceed: what a request causes, it causes each time."""


@contextmanager
def unharmed(log: Path) -> Iterator[None]:
    """Assert that the log of a service gets no fault and no block of the event loop meanwhile."""
    read = log.stat().st_size
    yield
    with log.open("rb") as file:
        file.seek(read)
        assert_unharmed(file.read().decode(errors="replace"))


def assert_unharmed(log: str) -> None:
    """That the log of a service has neither a fault nor a block of the event loop."""
    for harm in ("Traceback", "the event loop was blocked"):
        at = log.find(harm)
        assert at < 0, log[max(0, at - 1000) : at + 8000]


def api(*, limits: bool) -> Any:
    """The committed document; another test compares it with the application's. Without the routes that make keys:
    once a service has one, it asks for it for ever (`test_keys.py` has their cases). `limits`: whether values at and
    beyond the limits of each parameter are sent too, some 120 requests to each operation."""
    config = {**_CONFIG, "phases": {"coverage": {"enabled": limits}}}
    document = schemathesis.openapi.from_path(
        _ROOT / "openapi" / "openapi.json", config=schemathesis.Config.from_dict(config)
    )
    return document.exclude(path_regex="api_keys$", method="POST")


def examples(number: int) -> settings:
    """The same ones every time."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _is_text_after_all(case: Case) -> bool:
    """Whether a form has null, a number or a boolean, which is invalid by the schema and is sent as text, or what is
    sent as if it were not given: an empty list or text."""
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return is_form and any(
        isinstance(value, int | float | None) or value in ("", []) for value in case.body.values()
    )


class Fuzzer:
    """Sends cases to `url` and counts them. `jobs_on` is a base on which jobs may be created and never train,
    `deployable` a model that may be deployed and never starts."""

    def __init__(self, url: str, *, jobs_on: str | None = None, deployable: str | None = None) -> None:
        self._url = url
        self._deployable = deployable
        self._jobs_on = jobs_on
        self._session = requests.Session()
        self._known: dict[str, list[str]] = {}
        self._stale_after = 0
        self._requests = 0
        self._statuses: dict[str, Counter[int]] = {}
        self._slowest: list[tuple[float, str]] = []

    def send(self, case: Case) -> None:
        """Raises AssertionError where an answer does not come, or is not as documented."""
        label = case.operation.label
        self._aim(case)
        response = case.call(base_url=self._url, session=self._session, timeout=TIMEOUT)
        self._count(label, response.status_code, response.elapsed)
        excluded = [negative_data_rejection] if _is_text_after_all(case) else []
        case.validate_response(response, excluded_checks=excluded)
        assert response.headers.get("x-request-id"), "every answer has an id"
        if response.status_code in (429, 503):
            assert response.headers.get("retry-after"), f"{response.status_code} says when to try again"
        if response.status_code >= 400 and label != "GET /ready" and case.method != "HEAD":
            error = response.json()["error"]
            assert error["message"], "an error says what is wrong"
            assert set(error) == {"message", "type", "param", "code"}

    def wander(self, number: int) -> None:
        """`number` chains of requests, each about what an answer before named: made, read, deleted, read."""
        fuzzer = self
        begun = 0
        failures: list[BaseException] = []

        class Journeys(api(limits=False).as_state_machine()):  # type: ignore[misc]
            def setup(self) -> None:
                nonlocal begun
                begun += 1

            def get_call_kwargs(self, case: Case) -> dict[str, Any]:
                return {"base_url": fuzzer._url, "session": fuzzer._session, "timeout": TIMEOUT}

            def after_call(self, response: Any, case: Case) -> None:
                fuzzer._count(case.operation.label, response.status_code, response.elapsed)

            def validate_response(self, response: Any, case: Case, *args: Any, **kwargs: Any) -> None:
                try:
                    super().validate_response(response, case, *args, **kwargs)
                except BaseException as failure:
                    failures.append(failure)
                    raise

        for seed in range(number):
            # what a chain may ask next depends on the answers, which differ when Hypothesis repeats the beginning of a
            # chain: the service has other objects by then. It raises for that, and a new seed goes on
            with suppress(FlakyStrategyDefinition):
                hypothesis.seed(seed)(Journeys).run(
                    settings=settings(examples(number - begun), stateful_step_count=8)
                )
            if failures:
                raise failures[0]
            if begun >= number:
                return
        raise AssertionError(f"only {begun} of {number} chains were begun")

    def report(self) -> str:
        statuses: Counter[int] = sum(self._statuses.values(), Counter())
        lines = [f"{len(self._statuses)} operations, {self._requests} requests"]
        lines += [f"  {status}: {count}" for status, count in sorted(statuses.items())]
        lines += [f"  slowest: {seconds:.2f} s {what}" for seconds, what in self._slowest]
        return "\n".join(lines)

    def _count(self, label: str, status: int, took: float) -> None:
        self._requests += 1
        self._statuses.setdefault(label, Counter())[status] += 1
        self._slowest = sorted([*self._slowest, (took, f"{label} {status}")], reverse=True)[:5]

    def _aim(self, case: Case) -> None:
        """Put an existing name where one belongs, in half of the requests; the case decides which half."""
        if self._requests >= self._stale_after:
            self._look()
        chance = random.Random(zlib.crc32(repr(case).encode(errors="surrogatepass")))
        for name in case.path_parameters:
            known = self._known.get(name, [])
            if chance.random() < 0.5 and len(known) > (_KEPT if case.method == "DELETE" else 0):
                case.path_parameters[name] = chance.choice(known)
        if case.query.get("stream") in (True, "true", ["true"]) and case.path.endswith("/events"):
            case.path_parameters["job_id"] = chance.choice(self._known["ended_job_id"] or ["ftjob-none"])
        if "after" in case.query and chance.random() < 0.3:
            case.query["after"] = chance.choice(sum(self._known.values(), ["file-none"]))
        if isinstance(case.body, dict) and case.meta and case.meta.generation.mode.is_positive:
            self._aim_body(case, chance)  # an invalid body must stay invalid

    def _aim_body(self, case: Case, chance: random.Random) -> None:
        body = case.body
        assert isinstance(body, dict)
        if case.path == "/v1/files" and "purpose" in body and chance.random() < 0.5:
            body["purpose"] = "fine-tune"
        elif case.path == "/v1/fine_tuning/jobs" and "model" in body and self._jobs_on:
            if chance.random() < 0.5:
                body["model"] = self._jobs_on
            if chance.random() < 0.7 and "training_file" in body and self._known["file_id"]:
                body["training_file"] = chance.choice(self._known["file_id"])
        elif case.path == "/v1/aliases/{name}":
            for target in body.get("targets") or []:
                if chance.random() < 0.8:
                    target["model"] = chance.choice(self._known["model"])
            body["wait"] = chance.random() < 0.5
        elif case.path == "/v1/deployments" and "model" in body and self._deployable:
            if chance.random() < 0.7:
                body["model"] = self._deployable
        elif case.path in _GENERATIONS and "model" in body and chance.random() < 0.7:
            body["model"] = chance.choice(self._known["model"])
            if case.path in _GENERATIONS[:2] and chance.random() < 0.9:
                body["max_tokens"] = 4

    def _look(self) -> None:
        """List what exists, and create something new, since requests also delete."""
        self._stale_after = self._requests + 20
        self._session.post(
            f"{self._url}/v1/files",
            files={"file": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n')},
            data={"purpose": "fine-tune"},
            timeout=TIMEOUT,
        ).raise_for_status()
        jobs = self._list("/v1/fine_tuning/jobs?limit=1000")
        jobs = jobs[:10] + jobs[-10:]
        final = ("succeeded", "failed", "cancelled")
        self._known = {
            "file_id": [file["id"] for file in self._list("/v1/files?limit=20")],
            "job_id": [job["id"] for job in jobs],
            "ended_job_id": [job["id"] for job in jobs if job["status"] in final],
            "model": [model["id"] for model in self._list("/v1/models")],
            "adapter": [adapter["id"] for adapter in self._list("/v1/adapters")],
            "deployment": [one["id"] for one in self._list("/v1/deployments")],
            "name": [alias["id"] for alias in self._list("/v1/aliases")],
        }

    def _list(self, path: str) -> list[dict[str, Any]]:
        answer = self._session.get(self._url + path, timeout=TIMEOUT)
        answer.raise_for_status()
        return list(answer.json()["data"])
