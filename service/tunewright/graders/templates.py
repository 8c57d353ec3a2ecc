"""The references in texts of graders, as OpenAI documents them: `{{ item.x }}`, `{{ sample.output_text }}` and
`{{ sample.output_json.x }}`. They are looked up and put in, and nothing is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MOST_FILLED = 1_000_000
"""Characters of a text with all that is put into it."""
_REFERENCE = re.compile(r"(item|sample)((?:\.[A-Za-z_][\w-]{0,127}|\.\d{1,6}|\[\d{1,6}\]){1,16})")
_STEP = re.compile(r"[\w-]+")
_OF_SAMPLE = ("output_text", "output_json")


class UnknownVariable(ValueError):
    """A reference to what the item or the sample does not have."""


class NoJson(ValueError):
    """A reference to `sample.output_json`, and the sample is no JSON."""


class TooLong(ValueError):
    """A text that is too long with all that is put into it."""


@dataclass(frozen=True)
class Reference:
    """`{{ item.a.0 }}`: the namespace, `item` or `sample`, and the keys that lead to the value."""

    namespace: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.namespace, *self.keys))


@dataclass(frozen=True)
class Sample:
    """An answer of a model."""

    text: str

    @cached_property
    def json(self) -> Any:
        """The answer, parsed. Raises NoJson."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise NoJson("sample.output_json: the answer is not valid JSON") from None


def references(text: str) -> Iterator[Reference]:
    """The references of a text. Raises ValueError for what is between `{{` and `}}` and is none."""
    for part in _parts(text):
        if isinstance(part, Reference):
            yield part


def filled(text: str, item: Mapping[str, Any], sample: Sample) -> str:
    """The text with the values of its references. What is no text is put in as JSON.

    Raises UnknownVariable, NoJson and TooLong.
    """
    pieces, length = [], 0
    for part in _parts(text):
        piece = part if isinstance(part, str) else _text_of(_value(part, item, sample))
        length += len(piece)
        if length > MOST_FILLED:
            raise TooLong(
                f"a text of the grader has more than {MOST_FILLED} characters with what is put into it"
            )
        pieces.append(piece)
    return "".join(pieces)


def _parts(text: str) -> Iterator[str | Reference]:
    """The texts between references, and these. Raises ValueError."""
    position = 0
    while (begin := text.find("{{", position)) >= 0:
        end = text.find("}}", begin)
        inside = text[begin + 2 : end].strip() if end >= 0 else text[begin + 2 : begin + 40]
        match = _REFERENCE.fullmatch(inside) if end >= 0 else None
        if match is None:
            raise ValueError(
                f"{{{{{inside[:80]}}}}} is no reference: write {{{{item.x}}}}, {{{{sample.output_text}}}} or "
                "{{sample.output_json.x}}"
            )
        keys = tuple(_STEP.findall(match[2]))
        if match[1] == "sample" and (
            keys[0] not in _OF_SAMPLE or (keys[0] == "output_text" and len(keys) > 1)
        ):
            raise ValueError(
                f"sample.{'.'.join(keys)} is not offered: of a sample there are output_text and output_json"
            )
        yield text[position:begin]
        yield Reference(match[1], keys)
        position = end + 2
    yield text[position:]


def _value(reference: Reference, item: Mapping[str, Any], sample: Sample) -> Any:
    value: Any = item
    keys = reference.keys
    if reference.namespace == "sample":
        if keys[0] == "output_text":
            return sample.text
        value, keys = sample.json, keys[1:]
    return looked_up(reference, value, keys)


def looked_up(reference: Reference, value: Any, keys: tuple[str, ...]) -> Any:
    """What the keys lead to in `value`. Raises UnknownVariable."""
    for key in keys:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise UnknownVariable(f"there is no {reference}")
    return value


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
