"""HTML in what is said becomes text."""

from __future__ import annotations

import html
import re
from typing import Literal

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, kept
from tunewright.rows.cleaning.texts import changed_prose

_BLOCK = (
    "p|div|br|hr|li|ul|ol|dl|dt|dd|tr|table|thead|tbody|tfoot|h[1-6]|blockquote|pre|section|article|header|"
    "footer|nav"
)
_INLINE = (
    "a|abbr|b|big|body|button|center|code|col|del|em|figure|font|form|head|html|i|iframe|img|input|ins|kbd|label|link|"
    "main|mark|meta|noscript|option|q|s|script|select|small|source|span|strike|strong|style|sub|sup|svg|td|textarea|th|"
    "title|tt|u|var|video"
)
_ATTRIBUTES = r"""(?:\s(?:[^<>"']|"[^"<>]*"|'[^'<>]*')*)?/?"""
_HIDDEN = (
    (re.compile("<!--"), re.compile("-->")),
    (re.compile(r"<script\b[^<>]*>", re.IGNORECASE), re.compile(r"</script\s*>", re.IGNORECASE)),
    (re.compile(r"<style\b[^<>]*>", re.IGNORECASE), re.compile(r"</style\s*>", re.IGNORECASE)),
)
"""Begin and end of what a browser does not show."""
_BLOCKS = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}>|<!doctype[^<>]*>", re.IGNORECASE)
_INLINES = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n{3,}")


class HtmlOptions(Options):
    """Tags and comments are removed, entities become characters, and blocks begin on a line of their own."""

    type: Literal["html"] = "html"


class Html(Step):
    name = "html"

    def __init__(self, options: HtmlOptions) -> None:
        pass

    def apply(self, record: Record) -> Outcome:
        row = changed_prose(record.row, without_html)
        return kept(record) if row is record.row else Outcome(row, ("HTML",))


def without_html(text: str) -> str:
    """Of known tags only: `a < b` and `List<int>` are no HTML."""
    if "<" not in text and "&" not in text:
        return text
    plain = text
    for begin, end in _HIDDEN:
        plain = _without(plain, begin, end)
    plain = _INLINES.sub("", _BLOCKS.sub("\n", plain))
    plain = _ENTITY.sub(lambda found: html.unescape(found[0]), plain)
    if plain == text:
        return text
    lines = "\n".join(line.rstrip(" \t\xa0") for line in plain.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip()


def _without(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> str:
    """Without the parts from a begin to the next end. One expression for both would look for the end of each begin
    through all of the text, where there is none."""
    parts, at = [], 0
    while (opened := begin.search(text, at)) and (closed := end.search(text, opened.end())):
        parts.append(text[at : opened.start()])
        at = closed.end()
    return "".join([*parts, text[at:]])
