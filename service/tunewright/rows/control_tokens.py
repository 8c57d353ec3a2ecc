"""Control tokens of chat templates inside texts, and how they are made plain text.

Tokenizers find control tokens anywhere in a rendered conversation, so a message that quotes `<|im_start|>` would become
a turn. What is neutralized here is so in training (`rows.chat`) and in what is sent to the engine (`api.gateway`), so
that the same message has the same tokens in both. Only what is a control token of the model is changed: `<s>` is HTML
for a base that has no such token. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

PATTERN = re.compile(
    r"<\|(?!\s)[^<>|\n]{1,64}\|>"  # ChatML, Llama 3, Phi, GLM, Command R, gpt-oss, Granite, Kimi
    r"|<\|[a-z_\"]{1,32}>|<[a-z_\"]{1,32}\|>"  # Gemma 4
    r"|<｜[^<>｜\n]{1,64}｜>"  # DeepSeek, Hunyuan
    r"|\[\|[a-z_]{1,32}\|\]"  # EXAONE
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS)\]"  # Mistral
    r"|<</?SYS>>|</?s>"  # Llama 2, and the begin and end of most SentencePiece bases
    r"|<(?:start_of_turn|end_of_turn|bos|eos|pad|unk|mask)>"  # Gemma
    r"|<end_of_utterance>|<(?:SPECIAL|extra_id|reserved)_\d{1,4}>|<seed:[a-z_]{1,32}>|\]~!?b(?:\[|\])|\[e~\["
)
"""The forms of all known families: begins and ends of turns, texts and tools. Not those that an assistant's answer has
by right, such as `<think>` and `<tool_call>`: templates take them apart and write them again."""
_ANSWERS = re.compile(r"[<\[]/?(?:think|THINK|reasoning|tool_call|tool_response|tool_calls|tool_result)[>\]]")
"""Those that an answer has by right, where a tokenizer calls them special."""
_SPARE = re.compile(r"(?i)(?:reserved|unused|extra_id|control|special|placeholder|dummy)\D*\d")
"""Tokens that no template has: a vocabulary may have a thousand of them."""
Change = Callable[[str], str]
_KEPT = frozenset({"role", "type", "id", "tool_call_id", "weight"})
"""Fields of messages and calls that are no text of anybody."""
_NAMED_BY_WRITERS = ("arguments", "parameters")


class ControlTokens:
    """The control tokens of one model."""

    def __init__(self, tokens: Iterable[str]) -> None:
        ordered = sorted({*tokens}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def neutralized(self, value: Any) -> Any:
        """Messages, tools or one of them, with all texts in them, roles and ids too, as plain text; the same object
        where nothing had to change."""
        return value if self._pattern is None else changed_texts(value, self.neutralized_text, names=True)

    def neutralized_text(self, text: str) -> str:
        """The text with a space behind the first character of each control token, which ends it as a token for every
        tokenizer and can be seen."""
        return text if self._pattern is None else _with_spaces(text, self._pattern)


@lru_cache(maxsize=256)
def control_tokens(tokens: tuple[str, ...], template: str | None) -> ControlTokens:
    """Those of a tokenizer (`of_tokenizer`) and of the chat template that renders."""
    return ControlTokens([*tokens, *of_template(template or "")])


def of_tokenizer(added: Iterable[tuple[str, bool]], others: Iterable[str] = ()) -> tuple[str, ...]:
    """The control tokens among a tokenizer's added tokens, each with whether it is called special, and those of its
    other chat templates than the default one."""
    tokens = {
        token
        for token, is_special in added
        if (is_special or PATTERN.fullmatch(token))
        and token.strip()
        and not _ANSWERS.fullmatch(token)
        and not _SPARE.search(token)
    }
    return tuple(sorted(tokens.union(*map(of_template, others))))


def of_template(template: str) -> set[str]:
    """The control tokens that a chat template writes. Some are no tokens of the vocabulary, and turns all the same:
    `[INST]` of Llama 2."""
    return {found[0] for found in PATTERN.finditer(template)}


def neutralized_text(text: str) -> str:
    """The text with all forms of control tokens as plain text, whatever the model."""
    if "<" not in text and "[" not in text and "]" not in text:
        return text
    return _with_spaces(text, PATTERN)


def _with_spaces(text: str, pattern: re.Pattern[str]) -> str:
    while (changed := pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)) != text:
        text = changed  # what is behind the first character may be a token too: `<<s>`
    return text


def changed_texts(value: object, change: Change, *, names: bool = False) -> object:
    """The value with every text in it changed, arguments of calls included; the same object where no text changed.

    `names`: those of fields too, as in the arguments of calls and the parameters of tools, whose writer chooses them.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        items = [changed_texts(item, change, names=names) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        made = {
            (change(key) if names else key): _changed_field(key, part, change, names)
            for key, part in value.items()
        }
        same = all(new is old for new, old in zip(made.values(), value.values(), strict=False))
        return value if same and made.keys() == value.keys() else made
    return value


def _changed_field(key: str, value: object, change: Change, names: bool) -> object:
    if key in _KEPT and not names and not isinstance(value, dict | list):
        return value
    if key == "arguments" and isinstance(value, str):
        return _changed_arguments(value, change)
    return changed_texts(value, change, names=names or key in _NAMED_BY_WRITERS)


def _changed_arguments(text: str, change: Change) -> str:
    """Arguments are JSON, in which a control token may be written with escapes."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return change(text)
    changed = changed_texts(value, change, names=True)
    return text if changed is value else json.dumps(changed, ensure_ascii=False)
