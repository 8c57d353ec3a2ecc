"""Chat and text completions, whole and in chunks, in OpenAI's form."""

from typing import Any

from pydantic import Field

from .base import Wire


class Usage(Wire):
    """The number of tokens of one generation."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0


class ChatMessage(Wire):
    """A message; in a chunk, a part of a message."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Wire):
    """One answer. `finish_reason` is stop, length, tool_calls or another value of the engine."""

    index: int = 0
    message: ChatMessage = Field(default_factory=ChatMessage)
    finish_reason: str | None = None
    logprobs: Any = None


class ChunkChoice(Wire):
    """The next part of one answer."""

    index: int = 0
    delta: ChatMessage = Field(default_factory=ChatMessage)
    finish_reason: str | None = None
    logprobs: Any = None


class CompletionChoice(Wire):
    """One continuation; in a chunk, the next part of it."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: Any = None


class _Generation(Wire):
    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None


class ChatCompletion(_Generation):
    """A whole answer."""

    choices: list[ChatChoice] = Field(default_factory=list[ChatChoice])

    @property
    def text(self) -> str:
        """The text of the first choice; empty for an answer without text (a tool call)."""
        return next((choice.message.content or "" for choice in self.choices if choice.index == 0), "")


class ChatCompletionChunk(_Generation):
    """One event of a streamed answer. The last event may have `usage` and no choices."""

    choices: list[ChunkChoice] = Field(default_factory=list[ChunkChoice])

    @property
    def text(self) -> str:
        """The new text of the choice with index 0; empty where this event has none."""
        return next((choice.delta.content or "" for choice in self.choices if choice.index == 0), "")


class Completion(_Generation):
    """A whole continuation of a prompt."""

    choices: list[CompletionChoice] = Field(default_factory=list[CompletionChoice])

    @property
    def text(self) -> str:
        """The text of the first choice; empty where there is none."""
        return next((choice.text for choice in self.choices if choice.index == 0), "")


class CompletionChunk(Completion):
    """One event of a streamed continuation."""
