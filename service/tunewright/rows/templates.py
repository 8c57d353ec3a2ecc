"""Chat templates as text: reading that of a model folder, and checking whether a template can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunewright.apart import CutOff, OutOfMemory, call_apart

Message = dict[str, Any]
_SECONDS = 3
"""Processor time that rendering a few short conversations may take."""
_MOST_RENDERED = 2**20
"""Characters that it may become."""
_HELLO: Message = {"role": "user", "content": "Hello."}
_CALL: Message = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_CONVERSATIONS: tuple[list[Message], ...] = (
    [_HELLO],
    [{"role": "system", "content": "Be brief."}, _HELLO, {"role": "assistant", "content": "Hi."}, _HELLO],
    [
        _HELLO,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", **_CALL}]},
        {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "sunny"},
    ],
)
"""Of the kinds for which templates have parts of their own; each is rendered with tools and without."""


class _Generation(Extension):
    """The `{% generation %}` block that marks the assistant's tokens (transformers)."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def folder_template(folder: Path) -> str | None:
    """The chat template in a model's folder: `chat_template.jinja`, else the one in its tokenizer's config."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _config(folder).get("chat_template")
    if isinstance(template, list):  # named templates; the default one is used
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def other_templates(folder: Path) -> list[str]:
    """The named templates in a model's folder beside the default one, such as that for requests with tools."""
    config = _config(folder)
    named = config.get("chat_template")
    entries = [entry for entry in named if isinstance(entry, dict)] if isinstance(named, list) else []
    found = [entry.get("template") for entry in entries if entry.get("name") != "default"]
    files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return [text for text in found if isinstance(text, str)] + [
        file.read_text(encoding="utf-8") for file in files
    ]


def _config(folder: Path) -> dict[str, Any]:
    """The tokenizer's config."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def check_template(text: str) -> str | None:
    """The reason why `text` is not a chat template, or None. transformers and vLLM render it, sandboxed.

    Takes milliseconds, or up to `_SECONDS` for a template that does not end. Raises EngineUnavailable where the process
    that renders it could not be started.
    """
    try:
        _environment().parse(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"
    if "messages" not in text:
        return "it never mentions `messages`, the conversation it should render"
    try:
        return call_apart(_why_not_rendered, [], text, seconds=_SECONDS)
    except CutOff:
        return f"rendering a short conversation takes more than {_SECONDS} s"
    except OutOfMemory as error:
        return f"rendering a short conversation takes more than {error.mebibytes} MiB of memory"


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )


def _why_not_rendered(text: str) -> str | None:
    """Render short conversations. The template may loop, or make text without end."""
    try:
        template = _environment().from_string(text, globals={"raise_exception": _refuse, "strftime_now": str})
    except MemoryError:
        raise
    except Exception:  # transformers, which renders it, may know more
        return None
    for messages in _CONVERSATIONS:
        for tools in (None, [_TOOL]):
            if _is_long(template, messages, tools):
                return f"it renders a short conversation as more than {_MOST_RENDERED} characters"
    return None


def _is_long(template: Template, messages: list[Message], tools: list[Message] | None) -> bool:
    rendered = 0
    try:
        for piece in template.generate(
            messages=messages, tools=tools, add_generation_prompt=True, bos_token="", eos_token=""
        ):
            rendered += len(piece)
            if rendered > _MOST_RENDERED:
                return True
    except MemoryError:
        raise
    except Exception:  # it refuses this conversation, or needs more than a short check has
        pass
    return False


def _refuse(message: str) -> None:
    raise ValueError(message)
