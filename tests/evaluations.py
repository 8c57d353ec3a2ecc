"""Scores prompts in batches of eight beside other requests, as lm-evaluation-harness does, and judges each answer."""

from __future__ import annotations

import statistics
import threading
from collections import Counter

import httpx

PROMPTS = [
    "The sky is blue and the grass is green.", "A lemon is yellow and a heart is red, they say.", "One two three.",
    "The cat sat on the mat.", "Dogs and cats are animals.", "A pig says oink.", "Saturday comes before Sunday.",
    "The ocean is blue and deep.",
]  # fmt: skip
_FURTHEST, _MEAN = 0.5, 0.05
"""Nats by which a token's score, and the scores on average, may differ: batches of other shapes round otherwise."""
Scores = list[list[float]]


class Unanswered(Exception):
    """No scores: `refused` (503 with Retry-After), `unreachable`, or the answer itself."""


def score(client: httpx.Client, url: str, model: str) -> tuple[str, Scores]:
    """(the model that answered, the log-probabilities of each prompt's tokens but the first). Raises Unanswered."""
    body = {
        "model": model, "prompt": PROMPTS, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0,
        "seed": 1234,
    }  # fmt: skip
    try:
        answer = client.post(f"{url}/v1/completions", json=body)
    except httpx.HTTPError as error:
        raise Unanswered("unreachable") from error
    if answer.status_code == 503 and answer.headers.get("retry-after"):
        raise Unanswered("refused")
    if answer.status_code != 200:
        raise Unanswered(f"HTTP {answer.status_code} {answer.text[:200]}")
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    # the first token has no score; the last one is generated
    scores = [choice["logprobs"]["token_logprobs"][1:-1] for choice in choices]
    return answer.headers["x-tunewright-model"], scores


class Evaluation:
    """A thread that scores again and again; `expected` has the scores of each model that may answer.

    `bad` has what must never happen: other scores, and an answer that is neither scores nor a refusal.
    """

    def __init__(self, url: str, models: list[str], expected: dict[str, Scores]) -> None:
        self._url = url
        self._models = models
        self._expected = expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []

    def __enter__(self) -> Evaluation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(150)
        if self._thread.is_alive():
            self.bad.append("the evaluation hangs")

    def _run(self) -> None:
        with httpx.Client(timeout=httpx.Timeout(120, connect=30)) as client:
            while not self._stop.is_set():
                for model in self._models:
                    self._once(client, model)
                self._stop.wait(0.3)

    def _once(self, client: httpx.Client, model: str) -> None:
        try:
            version, scores = score(client, self._url, model)
        except Unanswered as error:
            outcome = str(error)
            self.counts[outcome if outcome in ("refused", "unreachable") else "bad"] += 1
            if outcome not in ("refused", "unreachable") and "The engine was lost" not in outcome:
                self.bad.append(outcome)
            return
        fault = _difference(scores, self._expected[version])
        self.counts["bad" if fault else "right"] += 1
        if fault:
            self.bad.append(f"{version}: {fault}")


def _difference(scores: Scores, expected: Scores) -> str:
    if [len(one) for one in scores] != [len(one) for one in expected]:
        return "other tokens"
    apart = [
        abs(a - b)
        for one, other in zip(scores, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    if max(apart) > _FURTHEST or statistics.mean(apart) > _MEAN:
        return f"scores differ by up to {max(apart):.2f} nats, {statistics.mean(apart):.3f} on average"
    return ""
