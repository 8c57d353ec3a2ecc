"""LangChain's standard suite of chat models: `pytest langchain_standard.py`, with the variables TUNEWRIGHT_URL,
TUNEWRIGHT_MODEL, and TUNEWRIGHT_BASE, another model.

Tests that may fail are those of what a model of four million parameters does not learn in a minute. The suite demands
that they are overridden and marked.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


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
            "max_tokens": 200,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["TUNEWRIGHT_BASE"]

    @pytest.mark.xfail(reason="nothing forces the call: the model answers in words")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="the model spells these letters byte by byte, and does not learn which")
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:  # type: ignore[override]
        super().test_unicode_tool_call_integration(model)

    @pytest.mark.xfail(reason="the model does not learn where a setup without a punchline ends")
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)
