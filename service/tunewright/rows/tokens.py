"""The tokens of rendered text, with the pieces between special tokens tokenized once."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

_KEPT = 4096
"""Pieces that are kept."""


class SegmentTokenizer:
    """The tokens of texts of which each repeats most of the last one, as the prompts of a conversation's turns do.

    A tokenizer cuts text at its added tokens, and then tokenizes each piece for itself. So do we, where these tokens
    have no options that reach into the text beside them; only the start of a text may be special (SentencePiece's
    first space), which is why a piece is tokenized behind one of these tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.items())
        plain = all(not (t.lstrip or t.rstrip or t.single_word or t.normalized) for _, t in added)
        self._ids = {token.content: number for number, token in added}
        contents = sorted((content for content in self._ids if content), key=len, reverse=True)
        self._cuts = re.compile(f"({'|'.join(map(re.escape, contents))})") if plain and contents else None
        self._anchor = next(
            (content for content in contents if self._whole(content) == [self._ids[content]]), None
        )
        self._piece = lru_cache(maxsize=_KEPT)(self._tokenized_piece)

    def __call__(self, text: str) -> list[int]:
        """The same as the tokenizer gives, without special tokens around the text."""
        if self._cuts is None or self._anchor is None:
            return self._whole(text)
        first, *rest = self._cuts.split(text)
        ids = self._whole(first) if first else []
        for number, part in enumerate(rest):
            if number % 2 == 0:
                ids.append(self._ids[part])
            elif part:
                ids += self._piece(part)
        return ids

    def _tokenized_piece(self, text: str) -> tuple[int, ...]:
        return tuple(self._whole(f"{self._anchor}{text}")[1:])

    def _whole(self, text: str) -> list[int]:
        tokenizer: Any = self._tokenizer
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
