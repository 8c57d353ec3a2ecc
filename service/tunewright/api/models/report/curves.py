"""Losses over the steps of a training, as SVG without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 56, 44
_MOST_POINTS = 1000
_COLOURS = ("a", "b")
_STYLE = (
    "svg{color-scheme:light dark;--text:#222;--muted:#666;--a:#3b78c4;--b:#c4563b;--page:#fff}"
    "@media(prefers-color-scheme:dark){svg{--text:#eee;--muted:#aaa;--a:#7fb2f0;--b:#ff9d80;--page:#1c1c1e}}"
    "text{font:12px system-ui,sans-serif;fill:var(--muted)}.title{font-size:15px;fill:var(--text)}"
    ".page{fill:var(--page)}.axis{stroke:var(--muted);stroke-opacity:.4}"
    "polyline{fill:none;stroke-width:1.5}.a{stroke:var(--a)}.b{stroke:var(--b)}circle{stroke-width:1.5;fill:none}"
    ".ka{fill:var(--a)}.kb{fill:var(--b)}"
)

Curve = Sequence[tuple[float, float]]
"""Steps and losses, in the order of the steps."""


def curves(title: str, named: Mapping[str, Curve]) -> str | None:
    """The curves with their names, at most two. None where no point is finite."""
    kept = {
        name: _thinned([point for point in curve if math.isfinite(point[1])]) for name, curve in named.items()
    }
    kept = {name: curve for name, curve in kept.items() if curve}
    points = [point for curve in kept.values() for point in curve]
    if not points:
        return None
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for at in range(5):
        value = low + (high - low) * at / 4
        y = place(left, value)[1]
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step in dict.fromkeys((left, right)):
        x = place(step, low)[0]
        anchor = "start" if step == left and right > left else "end"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{step:g}</text>')
    parts.append(
        f'<text x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">step</text>'
    )
    for number, (colour, (name, curve)) in enumerate(zip(_COLOURS, kept.items(), strict=False)):
        places = [place(*point) for point in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{colour}" points="{line}"/>')
        if len(places) <= 50:
            parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
        parts.append(f'<text class="k{colour}" x="{16 + 180 * number}" y="42">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<text class="title" x="16" y="24">{escape(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as a picture can show: every n-th, and the last one."""
    every = math.ceil(len(points) / _MOST_POINTS) if points else 1
    return [*points[:-1:every], points[-1]] if points else []
