"""LangChain's standard suite of chat models: `pytest langchain_standard.py`, with TUNEWRIGHT_URL and TUNEWRIGHT_MODEL.

The embedded model is small. What it cannot answer sensibly is named here with the reason, and has to fail: a test that
passes is to be taken off the list.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

CANNOT: dict[str, str] = {}
"""Tests that the embedded model cannot pass, and why."""


class TestService(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["TUNEWRIGHT_MODEL"],
            "base_url": os.environ["TUNEWRIGHT_URL"] + "/v1",
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 128,
            "stream_usage": True,
        }

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["TUNEWRIGHT_MODEL"]

    @property
    def supports_model_override(self) -> bool:
        return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = CANNOT.get(item.name.split("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
