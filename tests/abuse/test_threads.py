"""Slow requests never take what generations need."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import requests

from tests.engine.conftest import Service
from tests.without_vllm import BASE

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}


def generation(service: Service) -> float:
    """The seconds that it takes."""
    began = time.monotonic()
    answer = requests.post(f"{service.url}/v1/chat/completions", json=CHAT, timeout=30)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began


def test_generations_go_on_while_a_hub_hangs(service: Service) -> None:
    generation(service)

    def register(number: int) -> int:
        try:
            body = {"hub_id": f"org/adapter-{number}"}
            return requests.post(f"{service.url}/v1/adapters", json=body, timeout=3).status_code
        except requests.Timeout:
            return 0

    with ThreadPoolExecutor(60) as pool:
        answers = [pool.submit(register, number) for number in range(60)]
        time.sleep(1.5)
        assert max(generation(service) for _ in range(5)) < 1
        statuses = [answer.result() for answer in answers]
    assert statuses.count(429) == 56, "those that found no place are told so at once"
    assert requests.get(f"{service.url}/v1/files", timeout=5).status_code == 200


def test_generations_go_on_while_writers_wait(service: Service) -> None:
    """Another process has the database's write lock, and more requests want to write than there are threads."""
    generation(service)
    aliases = f"{service.url}/v1/aliases"

    def write(number: int) -> int:
        body = {"targets": [{"model": BASE}], "wait": False}
        return requests.put(f"{aliases}/writer-{number}", json=body, timeout=60).status_code

    with (
        ThreadPoolExecutor(60) as pool,
        closing(sqlite3.connect(service.data_dir / "tunewright.db")) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        answers = [pool.submit(write, number) for number in range(60)]
        time.sleep(1)
        took = [generation(service) for _ in range(5)]
        other.rollback()
        statuses = {answer.result() for answer in answers}
    assert max(took) < 1
    assert statuses == {200}
    for number in range(60):
        requests.delete(f"{aliases}/writer-{number}", timeout=5)
