"""The histogram of a report as a picture: SVG, in the colours of a light or a dark page, with no script in it."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from tunewright.rows.report.models import DataReport, Lengths

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 64, 52
_LONGEST_TITLE = 80
_STYLE = (
    "svg{color-scheme:light dark;--text:#222;--muted:#666;--bar:#3b78c4;--cut:#b3261e;--page:#fff}"
    "@media(prefers-color-scheme:dark){svg{--text:#eee;--muted:#aaa;--bar:#7fb2f0;--cut:#ff8a80;--page:#1c1c1e}}"
    "text{font:12px system-ui,sans-serif;fill:var(--muted)}.title{font-size:15px;fill:var(--text)}"
    ".page{fill:var(--page)}.bar{fill:var(--bar)}.axis{stroke:var(--muted)}"
    ".cut{stroke:var(--cut);stroke-dasharray:5 4}.cut-text{fill:var(--cut)}"
)


def picture(report: DataReport, name: str) -> str:
    """The lengths in tokens where the report has a model, else in characters. `name` is the file's."""
    tokens = report.tokens
    lengths = tokens.lengths if tokens is not None else report.characters
    title = f"{name[:_LONGEST_TITLE]}: {report.rows:,} rows"
    if tokens is not None:
        title += f", {tokens.tokens:,} tokens of {tokens.model[:_LONGEST_TITLE]}"
    if lengths is None:
        return _framed(title, "No row could be read or measured.", [])
    shown = ", ".join(f"{percent} % up to {lengths.percentiles[percent]:,}" for percent in ("50", "95", "99"))
    summary = f"Length in {lengths.unit}: {shown}, longest {lengths.longest:,}"
    parts = _bars(lengths)
    if tokens is not None and tokens.cut:
        parts += _cut(lengths, tokens.max_length, tokens.cut)
    return _framed(title, summary, parts)


def _bars(lengths: Lengths) -> list[str]:
    bins = lengths.histogram
    most = max(one.count for one in bins)
    width = (WIDTH - _LEFT - _RIGHT) / len(bins)
    bottom, height = HEIGHT - _BOTTOM, HEIGHT - _TOP - _BOTTOM
    parts = []
    every = math.ceil(len(bins) / 10)
    for index, one in enumerate(bins):
        tall = height * one.count / most
        x = _LEFT + index * width
        what = "row" if lengths.unit == "characters" else "example"
        told = f"{one.start:,} to {one.end:,} {lengths.unit}: {one.count:,} {what}{'' if one.count == 1 else 's'}"
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{bottom - tall:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{tall:.1f}"><title>{told}</title></rect>'
        )
        if index % every == 0:
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}">{one.start:,}</text>')
    parts += [
        f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{WIDTH - _RIGHT}" y2="{bottom}"/>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{most:,}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{lengths.unit}</text>',
    ]
    return parts


def _cut(lengths: Lengths, max_length: int, cut: int) -> list[str]:
    """The line at which examples are cut, within the bin that has it."""
    bins = lengths.histogram
    index = next(n for n, one in enumerate(bins) if max_length <= one.end)
    one = bins[index]
    share = (max_length - one.start) / (one.end + 1 - one.start)
    x = _LEFT + (index + share) * (WIDTH - _LEFT - _RIGHT) / len(bins)
    anchor = "start" if x < WIDTH / 2 else "end"
    return [
        f'<line class="cut" x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{HEIGHT - _BOTTOM}"/>',
        f'<text class="cut-text" x="{x:.1f}" y="{_TOP - 8}" text-anchor="{anchor}">'
        f"{cut:,} cut at {max_length:,}</text>",
    ]


def _framed(title: str, summary: str, parts: list[str]) -> str:
    title, summary = (escape(_printable(text)) for text in (title, summary))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title summary">'
        f'<title id="title">{title}</title><desc id="summary">{summary}</desc><style>{_STYLE}</style>'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<text class="title" x="16" y="24">{title}</text><text x="16" y="42">{summary}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _printable(text: str) -> str:
    """XML has no place for control characters, nor for half surrogate pairs."""
    return "".join(character if character.isprintable() else " " for character in text)
