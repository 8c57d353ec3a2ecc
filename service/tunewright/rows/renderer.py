"""Renders conversations with vLLM's own code, as the engine does for a chat request.

Imports vLLM's renderer (about 0.8 s beside transformers), whose modules the engine uses: what a template gets (parts
joined or kept, `developer` as `system`, arguments of calls as objects, `reasoning`) is decided there alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunewright.imports import without_compiler
from tunewright.rows.tools import as_rendered

with without_compiler():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.hf import (
        parse_chat_messages,  # the module has it from `renderers/chat_utils.py`, in vLLM 0.26 from `entrypoints`
        resolve_chat_template,
        resolve_chat_template_content_format,
        safe_apply_chat_template,
    )

Message = dict[str, Any]


class Unrenderable(Exception):
    """The engine, or the chat template, refuses the conversation; the message says why."""


class Renderer:
    """Renders with the chat template of a tokenizer, whose folder is that of the base."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        folder = Path(tokenizer.name_or_path)
        # The part of vLLM's ModelConfig that its renderer reads; `hf_config` is for models without a template.
        # vLLM 0.26 reads those about media even where no message has any.
        self._config: Any = SimpleNamespace(
            model=str(folder),
            tokenizer=str(folder),
            revision=None,
            tokenizer_revision=None,
            code_revision=None,
            trust_remote_code=False,
            allowed_local_media_path="",
            allowed_media_domains=None,
            is_multimodal_model=False,
            multimodal_config=None,
            enable_prompt_embeds=False,
            hf_config=SimpleNamespace(model_type=None),
        )

    def template(self, tools: list[dict[str, Any]] | None) -> str:
        """The template that the engine uses: models may have another one for requests with tools."""
        text = self._tokenizer.chat_template
        if isinstance(text, str):
            return text
        found = resolve_chat_template(self._tokenizer, None, tools, model_config=self._config)
        if found is None:
            raise Unrenderable(
                "the base has no chat template: give a chat_template, or use rows of texts, such as prompt/completion"
            )
        return str(found)

    def parse(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The messages and the tools as the template gets them from the engine."""
        body = {
            "model": "base",
            "messages": copy.deepcopy(list(messages)),
            "tools": copy.deepcopy(tools) or None,
        }
        try:
            request = ChatCompletionRequest.model_validate(body)
            dumped = as_rendered([tool.model_dump() for tool in request.tools] if request.tools else None)
            content_format = resolve_chat_template_content_format(
                self.template(dumped), dumped, "auto", self._tokenizer, model_config=self._config
            )
            conversation, _, _ = parse_chat_messages(request.messages, self._config, content_format)
        except Unrenderable:
            raise
        except Exception as error:  # pydantic's, and vLLM's of several kinds
            raise Unrenderable(f"the engine refuses the messages: {_reason(error)}") from error
        if len(conversation) != len(messages):
            raise Unrenderable("the engine makes several messages out of one")
        return [dict(message) for message in conversation], dumped

    def render(
        self, conversation: Sequence[Message], tools: list[dict[str, Any]] | None, *, prompt: bool
    ) -> str:
        """The text of parsed messages; `prompt`: with the beginning of the answer, as for a request."""
        try:
            return str(
                safe_apply_chat_template(
                    self._config,
                    self._tokenizer,
                    list(conversation),
                    tools=tools,
                    chat_template=self.template(tools),
                    tokenize=False,
                    add_generation_prompt=prompt,
                    continue_final_message=False,
                )
            )
        except Unrenderable:
            raise
        except Exception as error:  # templates raise all kinds of exceptions for what they do not support
            raise Unrenderable(f"the chat template refuses it: {_reason(error)}") from error


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which the engine ends an answer: the tokenizer's end of sequence and the base's `eos_token_id`.

    vLLM reads the latter from `generation_config.json`, else from `config.json`.
    """
    own = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    return frozenset(own | _configured_stops(str(tokenizer.name_or_path)))


@lru_cache(maxsize=8)
def _configured_stops(folder: str) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        try:
            config = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
        return frozenset(found if isinstance(found, list) else [] if found is None else [found])
    return frozenset()


def _reason(error: Exception) -> str:
    """The first line that a person can use."""
    errors = getattr(error, "errors", None)
    if callable(errors):  # pydantic's
        first = errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("ChatCompletion"))
        return f"{where}: {first['msg']}"[:300]
    return str(error)[:300]
