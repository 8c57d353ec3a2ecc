"""What is trained is rendered as the running engine renders it: its `/tokenize` gives the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import transformers

from families import CONVERSATIONS, TEMPLATES, row_of
from tests.engine.conftest import Service
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.examples import UnusableRow
from tunewright.store.store import Store


@pytest.fixture(scope="module")
def engine(service: Service) -> Iterator[tuple[httpx.Client, str]]:
    """vLLM itself, and the name of its base."""
    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    found = store.engines.get(EMBEDDED_BASE)
    store.close()
    assert found is not None
    assert found.socket is not None
    transport = httpx.HTTPTransport(uds=found.socket)
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client, client.get("/v1/models").json()["data"][0]["id"]


def prompts(row: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The messages before each answer."""
    for index, message in enumerate(row["messages"]):
        if message["role"] == "assistant" and index:
            yield [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"][:index]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_prompt_has_the_engines_tokens(engine: tuple[httpx.Client, str], name: str) -> None:
    client, base = engine
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_base_path(), local_files_only=True)
    tokenizer.chat_template = TEMPLATES[name].read_text()
    encoder = ChatEncoder(tokenizer)
    compared = 0
    for conversation in CONVERSATIONS:
        row = row_of(conversation)
        for messages in prompts(row):
            body = {
                "model": base,
                "messages": messages,
                "tools": row.get("tools"),
                "add_generation_prompt": True,
            }
            answer = client.post("/tokenize", json={**body, "chat_template": tokenizer.chat_template})
            where = f"{conversation}: {answer.text[:200]}"
            try:
                expected = encoder.prompt_tokens(messages, row.get("tools"))
            except UnusableRow:
                assert answer.status_code == 400, where
                continue
            assert answer.status_code == 200, where
            assert answer.json()["tokens"] == expected, where
            compared += 1
    assert compared or "bos_token" in tokenizer.chat_template, (
        "some templates need a token that this base lacks"
    )
