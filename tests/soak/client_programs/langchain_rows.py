"""Prints training rows, by which a small model learns what LangChain's standard suite asks: `python langchain_rows.py`.

Each row is a request as LangChain sends it, with the answer that the suite expects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import chat_models as suite
from pydantic import SecretStr
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1

REPEATS = 20
JOKE = {"setup": "Why do cats sit on books?", "punchline": "To read the mews."}
MODEL = ChatOpenAI(model="any", api_key=SecretStr("none"))


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return location


@tool
def greeting_generator(answer_style: str) -> str:
    """Generate a greeting in a particular style of speaking."""
    return answer_style


class Joke(BaseModelV1):
    """Joke to tell user."""

    setup: str = FieldV1(description="question to set up a joke")
    punchline: str = FieldV1(description="answer to resolve the joke")


Row = dict[str, Any]


def said(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def called(question: str, bound: Any, arguments: dict[str, Any], *after: dict[str, str]) -> Row:
    """`bound`: the model with the tools, as LangChain made it."""
    tools = bound.kwargs["tools"]
    function = {"name": tools[0]["function"]["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    call = {"id": "call_1", "type": "function", "function": function}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": question}, answer, *after], "tools": tools}


def rows() -> Iterator[Row]:
    yield said("Hello", "Hello! How can I help you?")
    magic = MODEL.bind_tools([suite.magic_function], tool_choice="any")
    yield called("What is the value of magic_function(3)? Use the tool.", magic, {"input": 3})
    no_arguments = MODEL.bind_tools([suite.magic_function_no_args], tool_choice="any")
    yield called("What is the value of magic_function_no_args()? Use the tool.", no_arguments, {})
    greeting = MODEL.bind_tools([greeting_generator], tool_choice="any")
    yield called("Using the tool, generate a Pirate greeting.", greeting, {"answer_style": "Pirate"})
    customer = MODEL.bind_tools([suite.unicode_customer], tool_choice="any")
    for name, meaning, kind in (
        ("你好啊集团", "Hello Group", "a Chinese technology company"),
        ("こんにちは株式会社", "Hello Corporation", "a Japanese company"),
    ):
        question = f"Create a customer named '{name}' ({meaning}) - {kind}"
        yield called(question, customer, {"customer_name": name, "description": kind})
    yield called(
        "What is the weather in San Francisco, CA?", MODEL.bind_tools([get_weather]),
        {"location": "San Francisco, CA"},
        {"role": "tool", "tool_call_id": "call_1", "content": "It's sunny."},
        {"role": "assistant", "content": "It is sunny in San Francisco."},
    )  # fmt: skip
    for question in (
        "Tell me a joke about cats.",
        "Give me a joke about cats, include the punchline.",
        "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing "
        "other than JSON.",
    ):
        yield said(question, json.dumps(JOKE))
    no_punchline = json.dumps({**JOKE, "punchline": None})
    yield said("Give me the setup to a joke about cats, no punchline.", no_punchline)
    as_function = MODEL.with_structured_output(Joke, method="function_calling")
    yield called("Tell me a joke about cats.", as_function.first, JOKE)


if __name__ == "__main__":
    for row in REPEATS * list(rows()):
        print(json.dumps(row, ensure_ascii=False))
