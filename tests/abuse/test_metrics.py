"""What attackers name never reaches /metrics, and however much they send, it does not grow."""

from __future__ import annotations

import random
import string

import requests

from tests.engine.conftest import Service

MARK = "evilmark"
NAMES = [
    f"{MARK}-{number}" for number in range(200)
] + [
    f'{MARK}"}} 1\ntunewright_jobs{{kind="x"}} 9\n', f"{MARK}\\", f"{MARK}\0", MARK * 5000, f"ft:tiny:{MARK}",
    f"tiny/{MARK}", f"tiny\u202e{MARK}", f"tiny {MARK}", "_other",
]  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/tokenize"]


def page(service: Service) -> str:
    answer = requests.get(f"{service.url}/metrics", timeout=10)
    assert answer.status_code == 200
    return answer.text


def series(text: str) -> set[str]:
    """Series of requests: the others depend on the state of the machine and of the service."""
    return {
        line.rpartition(" ")[0]
        for line in text.splitlines()
        if line.startswith(
            ("tunewright_requests", "tunewright_generated", "tunewright_http", "tunewright_time")
        )
    }


def test_no_text_of_a_request_becomes_a_label(service: Service) -> None:
    with requests.Session() as session:
        for number, name in enumerate(NAMES):
            body = {"model": name, "prompt": MARK, "user": MARK, "input": MARK, "messages": []}
            headers = {"X-Request-Id": f"{MARK}-{number}", "User-Agent": MARK, "X-Tunewright-Sticky": MARK}
            path = PATHS[number % len(PATHS)]
            assert session.post(service.url + path, json=body, headers=headers, timeout=30).status_code < 500
            session.get(f"{service.url}/v1/models/{MARK}-{number}", timeout=30)
            session.get(f"{service.url}/{MARK}/{number}?{MARK}={number}", timeout=30)
            session.request(
                "".join(random.choices(string.ascii_uppercase, k=6)), service.url + "/v1/files", timeout=30
            )
        text = page(service)
    assert MARK not in text
    assert '"_other"' not in text


def test_the_metrics_do_not_grow_with_what_is_sent(service: Service) -> None:
    def send() -> None:
        with requests.Session() as session:
            for number in range(100):
                name = f"name-{random.random()}"
                session.post(f"{service.url}/v1/completions", json={"model": name, "prompt": "x"}, timeout=30)
                session.get(f"{service.url}/v1/files/{name}", timeout=30)
                session.get(f"{service.url}/{name}/{number}", timeout=30)

    send()
    before = series(page(service))
    send()
    assert series(page(service)) == before
