"""Tokenizes rows, with labels for the assistant's tokens only, for any chat template.

A template with `{% generation %}` marks the assistant's tokens itself. For other templates they are found by rendering:
the text that a turn adds after the generation prompt is the assistant's. This fails for templates that rewrite earlier
turns (Qwen3, for example, drops old reasoning); there the text of each turn is found by putting a sentinel in its
place. The tokenizer's offsets map text spans to tokens.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

IGNORED = -100
Row = dict[str, Any]
Span = tuple[int, int]


class MaskingError(Exception):
    """The assistant's tokens cannot be found in this template's rendering."""


@dataclass(frozen=True)
class Example:
    """A row ready to train on: token ids, and labels of the same length with -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Example:
    """Prompt, completion and the end-of-sequence token; loss on the last two.

    The prompt has the same tokens as in a request. Where the whole text is tokenized differently (a token would cross
    the border between the two), the completion is tokenized separately.
    """
    before = list(tokenizer(prompt)["input_ids"]) if prompt else []
    # Some tokenizers, such as T5's, end every text with the end-of-sequence token.
    if before and before[-1] == tokenizer.eos_token_id:
        before.pop()
    ids = list(tokenizer(prompt + completion)["input_ids"])
    if ids[: len(before)] != before:
        ids = before + list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)
    return Example(ids, [IGNORED] * len(before) + ids[len(before) :])


def encode_chat(tokenizer: PreTrainedTokenizerBase, row: Row) -> Example:
    """A conversation rendered by the chat template; loss on assistant turns of weight 1, including their end token."""
    messages = [normalised(message) for message in row["messages"]]
    tools = row.get("tools")
    learnt = [m.get("role") == "assistant" and m.get("weight", 1) == 1 for m in row["messages"]]
    speaks = [m.get("role") == "assistant" for m in row["messages"]]
    template = tokenizer.get_chat_template()
    if "{% generation" in template or "{%- generation" in template:
        marked = tokenizer.apply_chat_template(
            messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        ids, mask = list(marked["input_ids"]), list(marked["assistant_masks"])
        if learnt != speaks:
            mask = _without_unlearnt(mask, learnt, speaks)
    else:
        text = _render(tokenizer, messages, tools)
        spans = _spans(tokenizer, messages, tools, text, learnt)
        ids, mask = _tokens_of(tokenizer, text, spans)
    if not any(mask):
        raise MaskingError("the chat template's rendering has no assistant tokens")
    return Example(ids, [token if wanted else IGNORED for token, wanted in zip(ids, mask, strict=True)])


def normalised(message: Row) -> Row:
    """The message as templates expect it: no `weight`, text parts joined, tool arguments as objects (as in vLLM)."""
    result = {key: value for key, value in message.items() if key != "weight"}
    content = result.get("content")
    if isinstance(content, list):
        result["content"] = "".join(part["text"] for part in content)
    elif content is None:
        result["content"] = ""
    if result.get("tool_calls"):
        calls = copy.deepcopy(result["tool_calls"])
        for call in calls:
            arguments = call["function"].get("arguments")
            if isinstance(arguments, str):
                call["function"]["arguments"] = json.loads(arguments or "{}")
        result["tool_calls"] = calls
    return result


def _without_unlearnt(mask: list[int], learnt: list[bool], speaks: list[bool]) -> list[int]:
    """The template's own mask without the runs that belong to turns of weight 0. One run is one turn."""
    wanted = [learn for learn, speak in zip(learnt, speaks, strict=True) if speak]
    runs, inside = -1, False
    result = []
    for value in mask:
        if value and not inside:
            runs += 1
        inside = bool(value)
        result.append(int(bool(value) and runs < len(wanted) and wanted[runs]))
    if runs + 1 != len(wanted):
        raise MaskingError("adjacent assistant turns of different weight cannot be separated")
    return result


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: Any, prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    )


def _spans(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: Any, text: str, learnt: list[bool]
) -> list[Span]:
    """The spans in `text` of the turns to learn, including their end-of-turn token."""
    spans = []
    for index, wanted in enumerate(learnt):
        if not wanted:
            continue
        before = _render(tokenizer, messages[:index], tools, prompt=True) if index else ""
        after = _render(tokenizer, messages[: index + 1], tools)
        if index and after.startswith(before) and text.startswith(after.rstrip()):
            content = messages[index]["content"].strip()
            found = text.find(content, len(before), len(after))
            written = found + len(content) if found >= 0 else len(before)
            spans.append(_to_end_token(tokenizer, text, len(before), written, len(after)))
        else:
            spans.append(_span_by_sentinel(tokenizer, messages, tools, text, index))
    return spans


def _span_by_sentinel(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: Any, text: str, index: int
) -> Span:
    """The span of a turn: with its text replaced by a sentinel, the rendering differs only there."""
    sentinel = "\u2e28turn\u2e29"
    changed = list(messages)
    changed[index] = {**messages[index], "content": sentinel}
    other = _render(tokenizer, changed, tools)
    start = other.find(sentinel)
    tail = other[start + len(sentinel) :]
    if start < 0 or other.count(sentinel) != 1 or text[:start] != other[:start] or not text.endswith(tail):
        raise MaskingError(
            f"messages[{index}] cannot be found in the chat template's rendering; add "
            "{% generation %} markers to the template"
        )
    return _to_end_token(tokenizer, text, start, len(text) - len(tail), len(text))


def _to_end_token(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, written: int, limit: int
) -> Span:
    """The span from `start` through the turn's end token, or to `limit` where the template has none.

    The end token is looked for after `written`, since the assistant's text before it may quote one.
    """
    ends = [(text.find(token, written, limit), token) for token in _end_tokens(tokenizer)]
    found = [(position, token) for position, token in ends if position >= 0]
    if not found:
        return start, start + len(text[start:limit].rstrip())
    position, token = min(found)
    return start, position + len(token)


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens that end a turn: the usual end-of-turn tokens and the end-of-sequence token."""
    usual = (
        "<|im_end|>",
        "<|eot_id|>",
        "<end_of_turn>",
        "<|end|>",
        "</s>",
        "<|endoftext|>",
        "<|END_OF_TURN_TOKEN|>",
    )
    vocabulary = tokenizer.get_vocab()
    tokens = [token for token in usual if token in vocabulary]
    if isinstance(tokenizer.eos_token, str) and tokenizer.eos_token not in tokens:
        tokens.append(tokenizer.eos_token)
    return tokens


def _tokens_of(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: list[Span]
) -> tuple[list[int], list[int]]:
    """The tokens of `text` (which has its special tokens already), and for each whether it lies in a span.

    The text before a span is tokenized as the prompt of a request would be: where a token would cross the start of a
    span (for example, with a template that ends its prompt with a space), the text is cut there first.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    cuts = [s for s, _ in spans if any(start < s < end for start, end in whole["offset_mapping"])]
    pieces = (
        [whole]
        if not cuts
        else [
            tokenizer(text[begin:stop], add_special_tokens=False, return_offsets_mapping=True)
            for begin, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)
        ]
    )
    ids: list[int] = []
    mask: list[int] = []
    for begin, piece in zip([0, *cuts], pieces, strict=True):
        ids += piece["input_ids"]
        mask += [
            int(any(begin + start < span_end and begin + end > span_start for span_start, span_end in spans))
            for start, end in piece["offset_mapping"]
        ]
    return ids, mask
