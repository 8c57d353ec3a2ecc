"""Examples of a conversation: each answer, learnt behind the prompt of a request for it.

For an answer to learn, the engine's own code renders the messages before it as a request's prompt, and the messages up
to it as a conversation. What the conversation has after the prompt is what the engine would have to generate, up to the
token at which it stops. Answers share an example as long as each prompt goes on from the last answer; where a template
rewrites what was said (Qwen3 drops old reasoning, for example), a conversation becomes several examples.

Whatever does not fit this is refused, so that nothing else than a request's tokens is learnt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunewright.rows.control_tokens import control_tokens, of_tokenizer
from tunewright.rows.examples import Example, Row, UnusableRow, continuation
from tunewright.rows.rendered import check_context, check_rendered
from tunewright.rows.renderer import Message, Renderer, Unrenderable, stop_tokens
from tunewright.rows.tokens import SegmentTokenizer
from tunewright.rows.written import not_behind, written

_REASONING = re.compile(r"""\.reasoning(_content)?\b|["']reasoning(_content)?["']""")
_NOT_SAID = frozenset({"weight", "parsed", "annotations"})
"""What a row has beside what is said. The openai client writes the last two: what it made of a content of JSON, and
where in the content the sources of a search are quoted."""
_PROBE = "\u2e28probe\u2e29"


class ChatEncoder:
    """Makes examples with a tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        # Of text that has its special tokens already, as a chat request's has.
        self._tokens = SegmentTokenizer(tokenizer)
        self._stops = stop_tokens(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)
        self._added = of_tokenizer(
            ((token.content, token.special) for token in tokenizer.added_tokens_decoder.values()),
            _named_templates(tokenizer),
        )
        self._seen_shapes: set[tuple[str, ...]] = set()

    def examples(self, row: Row) -> list[Example]:
        """One or more. Raises UnusableRow."""
        try:
            return self._examples(row)
        except Unrenderable as error:
            raise UnusableRow(str(error)) from error

    def as_sent(self, messages: list[Message], tools: Any) -> tuple[list[Message], Any]:
        """Messages and tools of a row as the engine gets them: as a client sends them, and with the control tokens in
        their texts as plain text."""
        control = control_tokens(self._added, self._renderer.template(tools))
        return [control.neutralized(as_sent(message)) for message in messages], control.neutralized(tools)

    def prompt_tokens(self, messages: list[Message], tools: Any) -> list[int]:
        """The tokens of a request with these messages. Raises UnusableRow."""
        try:
            conversation, parsed_tools = self._renderer.parse(*self.as_sent(messages, tools))
            return self._tokens(self._renderer.render(conversation, parsed_tools, prompt=True))
        except Unrenderable as error:
            raise UnusableRow(str(error)) from error

    def _examples(self, row: Row) -> list[Example]:
        sent, tools = self.as_sent(row["messages"], row.get("tools"))
        conversation, tools = self._renderer.parse(sent, tools)
        made: list[Example] = []
        learnt = [
            index
            for index, message in enumerate(row["messages"])
            if message.get("role") == "assistant" and message.get("weight") != 0
        ]
        for index in learnt:
            prompt, answer = self._answer(sent, conversation, tools, index)
            together = made[-1].extended(prompt, answer) if made else None
            if together is not None:
                made[-1] = together
            else:
                made.append(Example.of(prompt, answer))
        check_context(self._renderer, conversation, learnt, tools)
        return made

    def _answer(
        self, sent: list[Message], conversation: list[Message], tools: Any, index: int
    ) -> tuple[list[int], list[int]]:
        """The tokens of the prompt of messages[index], and its own."""
        before = conversation[:index]
        answer = _with_all_fields(sent[index], conversation[index], self._renderer.template(tools))
        prompt = self._prompt(before, tools, index)

        def write(message: Message) -> str | None:
            return written(self._renderer, before, message, tools, prompt)

        text = write(answer)
        if text is not None and (joined := _joined(answer, text)) is not None:
            answer = joined
            text = write(answer)
        if text is None:
            raise UnusableRow(
                not_behind(index, prompt, self._renderer.render([*before, answer], tools, prompt=False))
            )
        check_rendered(write, answer, index, text, self._seen_shapes)
        prompt_ids = self._tokens(prompt)
        ids = continuation(self._tokenizer, prompt_ids, self._tokens(prompt + text), text)
        end = self._end(ids)
        if end is not None:
            ids = ids[: end + 1]
        else:
            ids = self._ended(prompt, prompt_ids, text.rstrip(), calls=bool(answer.get("tool_calls")))
        self._check_goes_on(ids, index)
        return prompt_ids, ids

    def _check_goes_on(self, ids: list[int], index: int) -> None:
        """Raise UnusableRow where the engine would stop before the end of an answer: some templates make several turns
        of a text and a call (Nemotron Nano 2)."""
        early = next((token for token in ids[:-1] if token in self._stops), None)
        if early is not None:
            raise UnusableRow(
                f"messages[{index}] has {self._tokenizer.decode([early])} in its middle as the chat template renders "
                "it, where the engine stops, so the rest could never be answered: make two messages of it, or give the "
                "job a chat_template that renders it as one"
            )

    def _end(self, ids: list[int]) -> int | None:
        """The place of the token at which the engine stops: the first one behind which no text comes.

        The text itself may quote such a token, and a template may write more than one.
        """
        place, found = len(ids) - 1, None
        while place >= 0:
            if ids[place] in self._stops:
                found = place
            elif ids[place] not in self._special and self._tokenizer.decode([ids[place]]).strip():
                break
            place -= 1
        return found

    def _prompt(self, before: list[Message], tools: Any, index: int) -> str:
        try:
            return self._renderer.render(before, tools, prompt=True)
        except Unrenderable:
            if before:
                raise
            raise UnusableRow(
                f"messages[{index}] answers nothing, and the chat template has no prompt for that: begin with a system "
                'or user message, or give it "weight": 0'
            ) from None

    def _ended(self, prompt: str, prompt_ids: list[int], text: str, *, calls: bool) -> list[int]:
        """The tokens of an answer behind which the template writes no token at which the engine stops."""
        ids = continuation(self._tokenizer, prompt_ids, self._tokens(prompt + text), text)
        end = self._end_after_calls if calls else self._end_after_text
        if end is None:
            end = self._tokenizer.eos_token_id
        if end is None:
            raise UnusableRow(
                "the chat template writes no token at which the engine stops, and the base has no end-of-sequence "
                "token: the model would never end an answer"
            )
        return [*ids, int(end)]

    @cached_property
    def _end_after_text(self) -> int | None:
        """The token with which the next turn begins, where the engine stops at it (GLM-4.5: `<|user|>`)."""
        answer = {"role": "assistant", "content": _PROBE}
        return self._end_before(answer, {"role": "user", "content": "Thanks."})

    @cached_property
    def _end_after_calls(self) -> int | None:
        call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"a": _PROBE}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return self._end_before(answer, {"role": "tool", "tool_call_id": "call00001", "content": "b"})

    def _end_before(self, answer: Message, following: Message) -> int | None:
        asked = {"role": "user", "content": "Hello."}
        try:
            text = self._renderer.render([asked, answer, following], None, prompt=False)
        except Unrenderable:
            return None
        after = self._tokens(text.rpartition(_PROBE)[2])
        return next((token for token in after if token in self._stops), None)


def _named_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Its templates, where it has several."""
    named = tokenizer.chat_template
    return list(named.values()) if isinstance(named, dict) else []


def as_sent(message: Message) -> Message:
    """The message of a row as a client sends it: without `weight` and nulls, calls as OpenAI has them."""
    sent = {key: value for key, value in message.items() if value is not None and key not in _NOT_SAID}
    if "reasoning_content" in sent:  # vLLM's older name; what it answers has the newer one
        sent.setdefault("reasoning", sent.pop("reasoning_content"))
    if sent.get("tool_calls"):
        sent["tool_calls"] = list(_calls(sent["tool_calls"]))
    else:
        sent.pop("tool_calls", None)
    return sent


def _calls(calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, call in enumerate(calls):
        function = dict(call["function"])
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments or {}, ensure_ascii=False)
        known = {key: value for key, value in call.items() if value is not None}
        yield {"id": f"call{number:05}", "type": "function", **known, "function": function}


def _joined(answer: Message, text: str) -> Message | None:
    """The answer with its parts as one text, where the template writes the list itself; else None.

    vLLM gives all contents to a template as parts where it takes parts anywhere. Some (Kimi K2) write those of an
    answer with calls as they are: `[{'type': 'text', 'text': ...}]`. No model has to answer that.
    """
    content = answer.get("content")
    if not isinstance(content, list) or (str(content) not in text and json.dumps(content) not in text):
        return None
    return {**answer, "content": "\n".join(part.get("text", "") for part in content)}


def _with_all_fields(sent: Message, parsed: Message, template: str) -> Message:
    """An answer with what the model would have to write and no request can carry, such as gpt-oss's `thinking`."""
    answer = {**{key: value for key, value in sent.items() if key not in parsed}, **parsed}
    if "reasoning" in answer and "thinking" not in answer and not _REASONING.search(template):
        answer["thinking"] = answer["reasoning"]
    return answer
