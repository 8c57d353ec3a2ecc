"""A report as a model card: Markdown with the front matter that hubs read."""

from __future__ import annotations

import json
import re

from tunewright.api.models.report.document import Document, Heading, Pairs, Part, Picture, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


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
        lines.append(f"base_model: {json.dumps(document.base)}")
    lines += [
        f"library_name: {document.library}",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['tunewright', *document.tags])}",
    ]
    if document.results:
        lines += [
            "model-index:",
            f"- name: {json.dumps(document.title)}",
            "  results:",
        ]
    for one in document.results:
        lines += [
            "  - task: {type: text-generation}",
            f"    dataset: {json.dumps({'name': one.data, 'type': 'custom', 'revision': one.sha256})}",
            f"    metrics: {json.dumps([{'type': one.metric, 'value': one.value}])}",
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


def _plain(text: str) -> str:
    """A text in one line that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
