"""ShareGPT's format, also LLaMA-Factory's form of it, with tools and with two answers to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunewright.rows.faults import RowFault, json_type, listed, parse_json
from tunewright.rows.reading import TAGS

Row = dict[str, Any]
FIELDS = {"conversations", "system", "tools", "chosen", "rejected", "label", "kto_tag"}
_ROLES = {
    "user": {"human", "user"},
    "assistant": {"gpt", "assistant", "chatgpt", "bing", "bard", "model"},
    "system": {"system"},
    "observation": {"observation", "tool", "function_response", "tool_response"},
    "function": {"function_call", "tool_call"},
}
"""What `from` may be, for each role that a tag names."""


def conversation(row: Row, tags: Mapping[str, str]) -> Row:
    """The row as a chat row, before its checks. Raises RowFault."""
    turns = _parsed(row["conversations"], "conversations")
    if not isinstance(turns, list) or not turns:
        raise RowFault('"conversations" must be a list with at least one turn')
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowFault(f'"system" must be a string, not {json_type(system)}')
    messages: list[Row] = [{"role": "system", "content": system}] if system else []
    messages += _messages(turns, tags)
    tools = _tools(row.get("tools"))
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def answers(row: Row, tags: Mapping[str, str]) -> Row:
    """`chosen` and `rejected` as messages, where the row has them. Raises RowFault."""
    made = {}
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            continue
        value = row[name]
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _parsed(value, name)
        if isinstance(value, str):
            made[name] = [{"role": "assistant", "content": value}]
        else:
            made[name] = _messages(value if isinstance(value, list) else [value], tags, name)
    return made


def _messages(turns: list[Any], tags: Mapping[str, str], name: str = "conversations") -> list[Row]:
    messages: list[Row] = []
    unanswered: list[str] = []
    calls = 0
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        role, value = _turn(turn, tags, where)
        if role == "function":
            made = _calls(value, where, calls)
            calls += len(made)
            unanswered = [call["id"] for call in made]
            messages.append({"role": "assistant", "content": "", "tool_calls": made})
        elif role == "observation":
            answered = {"tool_call_id": unanswered.pop(0)} if unanswered else {}
            messages.append({"role": "tool", "content": value, **answered})
        else:
            weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
            messages.append({"role": role, "content": value, **weight})
    return messages


def _turn(turn: object, tags: Mapping[str, str], where: str) -> tuple[str, str]:
    """The role and the text of a turn. Turns of `role` and `content` are taken too."""
    if not isinstance(turn, dict):
        raise RowFault(f"{where} must be an object, not {json_type(turn)}")
    names = {**TAGS, **tags}
    role_tag, content_tag = names["role_tag"], names["content_tag"]
    if role_tag not in turn and "role" in turn:
        role_tag, content_tag = "role", "content"
    said, value = turn.get(role_tag), turn.get(content_tag)
    if not isinstance(value, str):
        raise RowFault(f"{where}.{content_tag} must be a string, not {json_type(value)}")
    for role, known in _ROLES.items():
        if said == names[f"{role}_tag"] or (isinstance(said, str) and said in known):
            return role, value
    known_names = listed(names[f"{role}_tag"] for role in _ROLES)
    raise RowFault(f"{where}.{role_tag} must be one of {known_names}; got {listed([said])}")


def _calls(value: str, where: str, before: int) -> list[Row]:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise RowFault(f"{where} is a call, and must be JSON with name and arguments") from None
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls:
        raise RowFault(f"{where} has no call")
    made = []
    for number, call in enumerate(calls, before):
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise RowFault(f"{where} is a call without a name")
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": call["name"], "arguments": arguments}
        made.append({"id": f"call{number:05}", "type": "function", "function": function})
    return made


def _tools(value: object) -> object:
    """Tools as OpenAI has them; LLaMA-Factory's are a text of JSON, and have no `function` around them."""
    tools = _parsed(value, "tools")
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        return tools or None
    return [
        {"type": "function", "function": tool} if isinstance(tool, dict) and "name" in tool else tool
        for tool in tools
    ]


def _parsed(value: object, name: str) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value)
    except RowFault as fault:
        raise RowFault(f'"{name}" is {fault}') from None
