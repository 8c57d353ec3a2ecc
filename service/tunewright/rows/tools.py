"""The functions of a conversation as its prompt has them, in training as in the engine."""

from __future__ import annotations

from typing import Any

Tool = dict[str, Any]


def as_rendered(tools: list[Tool] | None) -> list[Tool] | None:
    """The tools without `strict`, which is for the engine's grammars: many templates print functions as JSON, and a
    forced call, whose functions are made strict, would be asked for with another prompt than was learnt."""
    return [_without_strict(tool) for tool in tools] if tools else tools


def _without_strict(tool: Tool) -> Tool:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return {**tool, "function": {key: value for key, value in function.items() if key != "strict"}}
