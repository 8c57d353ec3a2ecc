"""Asks for structured answers with instructor, pydantic-ai and LangChain: `python structured.py URL MODEL`.

The model is small: what it fills in is not judged, only that each library gets an object of its schema.
"""

from __future__ import annotations

import sys
from typing import Literal

import instructor
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, Field, SecretStr
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=12)  # the small model would write until its tokens end
    legs: int = Field(ge=0, le=8)
    barks: bool


@tool
def weather(city: Literal["Ulm", "Bern"], days: Literal[1, 2, 3]) -> str:
    """Tells the weather of a city."""
    return f"{city}: sunny for {days} days"


ASKED = "How many legs does a dog have?"


def main(url: str, model: str) -> None:
    base = f"{url}/v1"
    client = instructor.from_openai(OpenAI(base_url=base, api_key="none"), mode=instructor.Mode.TOOLS)
    made = client.chat.completions.create(
        model=model,
        response_model=Animal,
        max_retries=0,
        max_tokens=600,
        messages=[{"role": "user", "content": ASKED}],
        temperature=0,
    )
    assert isinstance(made, Animal), made
    print("instructor", made)

    provider = OpenAIProvider(base_url=base, api_key="none")
    agent = Agent(OpenAIChatModel(model, provider=provider), output_type=Animal, retries=0)
    output = agent.run_sync(ASKED, model_settings={"temperature": 0.0, "max_tokens": 200}).output
    assert isinstance(output, Animal), output
    print("pydantic-ai", output)

    chat = ChatOpenAI(model=model, base_url=base, api_key=SecretStr("none"), temperature=0, max_retries=0)
    # `json_schema` needs a model that does not fill its answer with white space
    found = chat.with_structured_output(Animal, method="function_calling").invoke(ASKED)
    assert isinstance(found, Animal), found
    print("LangChain", found)
    answer = chat.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Ulm?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather", call
    assert isinstance(call["args"]["days"], int), call
    print("LangChain tool", call["args"])
    said = "".join(str(chunk.content) for chunk in chat.stream(ASKED, max_tokens=16))
    assert said
    print("LangChain stream", said)


if __name__ == "__main__":
    main(*sys.argv[1:])
