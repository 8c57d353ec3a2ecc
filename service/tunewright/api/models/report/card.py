"""A report as a model card: Markdown with the front matter that hubs read."""

from __future__ import annotations

import json
import re
from typing import Any

from tunewright.api.models.report.document import Document, Heading, Pairs, Part, Picture, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~@]|(?<=www)\.|:(?=//))")
"""What Markdown reads as more than itself: marks, HTML, entities, and the addresses that it makes links of."""
_PAIR = re.compile(r"(\\\\)|\\u(d[89ab]..)\\u(d[c-f]..)")


def card_of(document: Document, footer: str) -> str:
    """The card, as `README.md` of a model's repository. Texts of users are escaped."""
    lines = [
        *_front_matter(document), "", f"# {_plain(document.title)}", "", _plain(document.summary), "",
    ]  # fmt: skip
    for section in document.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for part in section.parts:
            lines += _part(part)
    return "\n".join([*lines, _plain(footer)]) + "\n"


def _front_matter(document: Document) -> list[str]:
    """YAML, whose values are written as JSON."""
    lines = ["---"]
    if document.base is not None:
        lines.append(f"base_model: {_yaml(document.base)}")
    lines += [
        f"library_name: {document.library}",
        "pipeline_tag: text-generation",
        f"tags: {_yaml(['tunewright', *document.tags])}",
    ]
    if document.results:
        lines += [
            "model-index:",
            f"- name: {_yaml(document.title)}",
            "  results:",
        ]
    for one in document.results:
        lines += [
            "  - task: {type: text-generation}",
            f"    dataset: {_yaml({'name': one.data, 'type': 'custom', 'revision': one.sha256})}",
            f"    metrics: {_yaml([{'type': one.metric, 'value': one.value}])}",
        ]
    return [*lines, "---"]


def _part(part: Part) -> list[str]:
    if isinstance(part, Pairs):
        return [
            *(f"- {_plain(name)}: {_plain(value)}" for name, value in part.items if value is not None),
            "",
        ]
    if isinstance(part, Table):
        return [
            f"| {' | '.join(map(_plain, part.head))} |",
            f"|{'---|' * len(part.head)}",
            *(f"| {' | '.join(map(_plain, row))} |" for row in part.rows),
            "",
        ]
    if isinstance(part, Heading):
        return [f"### {_plain(part.text)}", ""]
    if isinstance(part, Picture):
        return []
    return [_plain(part.text), ""]


def _yaml(value: Any) -> str:
    """The value as JSON that is YAML too: its escapes are the same, but for characters that JSON writes as two."""

    def joined(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        return bytes.fromhex(found[2] + found[3]).decode("utf-16-be")

    return _PAIR.sub(joined, json.dumps(value))


def _plain(text: str) -> str:
    """A text in one line that Markdown shows as it is, without characters that cannot be seen."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return _SPECIAL.sub(r"\\\1", " ".join(shown.split()))
