"""Checks that what is in a row is in its rendering: many templates leave out what they do not know.

A value that stands in the rendering as it is in the row is taken to be rendered. The first time that a message has
certain fields, and where a value does not stand there, the value is changed, and the rendering has to change with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from tunewright.rows.examples import UnusableRow
from tunewright.rows.renderer import Message, Renderer, Unrenderable

_MARK = "\u2e28changed\u2e29"
_TAGS = frozenset({"<think>", "</think>"})
"""Words that templates take apart, and write again."""
_NOT_CONTENT = frozenset({"role", "name", "tool_call_id", "tools", "task"})
Change = Callable[[Message], None]


def check_rendered(
    write: Callable[[Message], str | None],
    answer: Message,
    index: int,
    text: str,
    seen: set[tuple[str, ...]],
) -> None:
    """Raise UnusableRow where a field of an answer, messages[index], is not in its text, which `write` makes.

    `seen`: the combinations of fields that were looked at closely before.
    """
    shape = tuple(sorted(key for key, value in answer.items() if value))
    known = shape in seen
    for name, values, change in _fields(answer):
        if known and all(_stands(value, text) for value in values):
            continue
        changed = copy.deepcopy(answer)
        change(changed)
        try:
            other = write(changed)
        except Unrenderable:
            continue  # it is looked at: the template refuses the changed value
        if other == text:
            raise UnusableRow(
                f"messages[{index}].{name} is not in the chat template's rendering, so the model would not learn it: "
                f"{_advice(name)}"
            )
    seen.add(shape)


def first_change(
    renderer: Renderer, before: list[Message], answer: Message, tools: Any, whole: str
) -> int | None:
    """Where the rendering first depends on what an answer says; None where it does not."""
    places = []
    for _, _, change in _fields(answer):
        changed = copy.deepcopy(answer)
        change(changed)
        try:
            other = renderer.render([*before, changed], tools, prompt=False)
        except Unrenderable:
            continue
        same = next((n for n, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b), None)
        places += [] if same is None else [same]
    return min(places, default=None)


def end_of_last(
    renderer: Renderer, before: list[Message], answer: Message, tools: Any, whole: str
) -> int | None:
    """Where the rendering last depends on the message before an answer; None where it does not."""
    ends = []
    for _, _, change in _fields(before[-1]) if before else ():
        last = copy.deepcopy(before[-1])
        change(last)
        try:
            other = renderer.render([*before[:-1], last, answer], tools, prompt=False)
        except Unrenderable:
            continue
        backwards = zip(reversed(whole), reversed(other), strict=False)
        same = next((n for n, (a, b) in enumerate(backwards) if a != b), None)
        ends += [] if same is None else [len(whole) - same]
    return max(ends, default=None)


def check_context(
    renderer: Renderer, conversation: list[Message], learnt: list[int], tools: list[dict[str, Any]] | None
) -> None:
    """Raise UnusableRow where a message that is not learnt, or a tool, is not rendered."""
    whole = renderer.render(conversation, tools, prompt=False)
    for index, message in enumerate(conversation):
        if index in learnt:
            continue
        for name, values, change in _fields(message):
            if all(_stands(value, whole) for value in values):
                continue
            if message["role"] == "assistant" and not name.startswith("tool_calls"):
                continue  # templates drop old reasoning, and text beside calls
            changed = copy.deepcopy(conversation)
            change(changed[index])
            if _same(renderer, changed, tools, whole):
                raise UnusableRow(
                    f"messages[{index}].{name} ({message['role']}) is not in the chat template's rendering: "
                    f"{_advice(name)}"
                )
    for number, tool in enumerate(tools or []):
        name = tool["function"]["name"]
        if name in whole:
            continue
        renamed = copy.deepcopy(tools or [])
        renamed[number]["function"]["name"] = name + "_changed"
        if _same(renderer, conversation, renamed, whole):
            raise UnusableRow(f"tools[{number}] is not in the chat template's rendering: {_advice('tools')}")


def _same(renderer: Renderer, conversation: list[Message], tools: Any, whole: str) -> bool:
    try:
        return renderer.render(conversation, tools, prompt=False) == whole
    except Unrenderable:
        return False


def _fields(message: Message) -> Iterator[tuple[str, list[str], Change]]:
    """(name, its texts, what changes it) of each field that a rendering has to have."""
    for key, value in message.items():
        if key in _NOT_CONTENT or not value or (key == "reasoning_content" and "reasoning" in message):
            continue
        if key == "tool_calls":
            yield from _call_fields(value)
        elif key == "content":
            yield from _content_fields(value)
        elif key != "thinking" or "reasoning" not in message:
            keys = [key] if key != "reasoning" else ["reasoning", "reasoning_content", "thinking"]
            yield key, _texts(value), _setting(keys)


def _content_fields(content: Any) -> Iterator[tuple[str, list[str], Change]]:
    """Its first and its last word, since templates drop either end (old reasoning, for example)."""
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    words = [word for text in texts for word in text.split() if word not in _TAGS]
    if not words:
        return

    def changing(word: str, *, last: bool) -> Change:
        def change(message: Message) -> None:
            if isinstance(content, str):
                message["content"] = _replaced(content, word, last=last)
            else:
                with_word = [part for part in message["content"] if word in part.get("text", "")]
                part = with_word[-1 if last else 0]
                part["text"] = _replaced(part["text"], word, last=last)

        return change

    yield "content", texts, changing(words[0], last=False)
    yield "content", texts, changing(words[-1], last=True)


def _replaced(text: str, word: str, *, last: bool) -> str:
    before, _, after = text.rpartition(word) if last else text.partition(word)
    return before + _MARK + after


def _call_fields(calls: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], Change]]:
    for number, call in enumerate(calls):
        function = call["function"]

        def rename(message: Message, number: int = number) -> None:
            message["tool_calls"][number]["function"]["name"] += "_changed"

        yield f"tool_calls[{number}].function.name", [function["name"]], rename
        if function.get("arguments"):

            def reargue(message: Message, number: int = number) -> None:
                arguments = message["tool_calls"][number]["function"]["arguments"]
                arguments[next(iter(arguments))] = _MARK

            texts = _texts(function["arguments"])
            yield f"tool_calls[{number}].function.arguments", texts, reargue


def _setting(keys: list[str]) -> Change:
    def change(message: Message) -> None:
        for key in keys:
            if key in message:
                message[key] = _MARK

    return change


def _texts(value: Any) -> list[str]:
    """The texts in a value, with names."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value if isinstance(value, str) else json.dumps(value)]


def _stands(value: str, text: str) -> bool:
    value = value.strip()
    return (
        value in text
        or json.dumps(value)[1:-1] in text
        or json.dumps(value, ensure_ascii=False)[1:-1] in text
    )


def _advice(name: str) -> str:
    if name == "content":
        return "give the job a chat_template that renders it, or leave the message out"
    return "leave it out, or give the job a chat_template that renders it"
