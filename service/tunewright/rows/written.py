"""The text of an answer behind the prompt of a request: what the engine would have to generate."""

from __future__ import annotations

import json
import re

from tunewright.rows.rendered import end_of_last, first_change
from tunewright.rows.renderer import Message, Renderer

_OPENED = re.compile(r"<think>\s*$")
"""The end of a prompt behind which a model begins to reason."""
_CLOSED = re.compile(
    r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>|<\|START_THINKING\|>\s*<\|END_THINKING\|>)\s*$"
)
"""The end of a prompt behind which a model does not reason: of many families, Gemma 4, Command R7B."""
_REASONS = ("<think>", "<|channel>", "<|START_THINKING|>")
_SHOWN = 60
"""Characters of a rendering that a message quotes."""


def written(
    renderer: Renderer,
    before: list[Message],
    answer: Message,
    tools: list[dict[str, object]] | None,
    prompt: str,
) -> str | None:
    """What the conversation with `answer` has behind the prompt of a request with the messages before it.

    Where the rendering does not begin with that prompt, it is what stands behind the beginning of the answer, which the
    prompt ends with: templates rewrite the messages before (gpt-oss drops the reasoning before a call once the answer
    is there). None where that beginning is not there either.

    A prompt that opens the reasoning asks for its end too. Where the template leaves that out (DeepSeek R1), it is
    written as the model writes it; the reasoning is that of the message, or empty. One that has closed it, where the
    conversation has no reasoning (Gemma 4), asks for the rest.
    """
    whole = renderer.render([*before, answer], tools, prompt=False)
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    closed = _CLOSED.search(prompt)
    if closed and whole.startswith(asked := prompt[: closed.start()]):
        rest = whole[len(asked) :]
        return None if rest.lstrip().startswith(_REASONS) else rest
    opened = _OPENED.search(prompt)
    asked = prompt[: opened.start()] if opened else prompt
    if whole.startswith(asked):
        rest = whole[len(asked) :]
    else:
        begin = _beginning(renderer, before, tools, asked)
        changed = first_change(renderer, before, answer, tools, whole)
        place = whole.rfind(begin, 0, changed) if begin and changed is not None else -1
        end = end_of_last(renderer, before, answer, tools, whole) if place >= 0 else None
        if end is None or place < end:  # that of an answer before: what stands between would be learnt too
            return None
        rest = whole[place + len(begin) :]
    if not opened:
        return rest
    if rest.startswith("<think>"):  # with other white space behind it, as in Nemotron-3
        return rest.removeprefix("<think>").lstrip()
    return f"{_reasoning(answer)}\n</think>\n\n{rest}"


def _beginning(
    renderer: Renderer, before: list[Message], tools: list[dict[str, object]] | None, asked: str
) -> str:
    """What a prompt has behind the messages: the beginning of the answer."""
    said = renderer.render(before, tools, prompt=False)
    return asked[len(said) :] if asked.startswith(said) else ""


def _reasoning(answer: Message) -> str:
    """The reasoning of a message whose template does not render it."""
    content = answer.get("content")
    if isinstance(content, str) and "</think>" in content:
        return content.partition("</think>")[0].replace("<think>", "", 1).strip("\n")
    return str(answer.get("reasoning") or answer.get("thinking") or "")


def not_behind(index: int, prompt: str, whole: str) -> str:
    """The message for an answer that the template does not render behind a request's prompt."""
    same = next((n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    asked, rendered = (json.dumps(text[same : same + _SHOWN], ensure_ascii=False) for text in (prompt, whole))
    return (
        f"messages[{index}] is not rendered as the engine would have to answer: the prompt of a request goes on with "
        f"{asked} where the conversation has {rendered}; "
        "give the job a chat_template that renders both alike"
    )
