"""A report as one page of HTML: no script, nothing from elsewhere, pictures inside."""

from __future__ import annotations

from base64 import b64encode
from html import escape

from tunewright.api.models.report.document import Document, Heading, Pairs, Part, Picture, Table

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0;display:block;overflow-x:auto}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .9rem .2rem 0;overflow-wrap:anywhere}"
    "th{font-weight:600;white-space:nowrap}tr+tr td{border-top:1px solid #8884}"
    "img{max-width:100%;height:auto}.summary{font-size:1.1rem}footer{margin-top:3rem;color:#777}"
    "@media print{body{max-width:none}}"
)


def page_of(document: Document, footer: str) -> str:
    """The page. All texts of users are escaped."""
    sections = "".join(
        f"<section><h2>{escape(section.title)}</h2>{''.join(map(_part, section.parts))}</section>"
        for section in document.sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(document.title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_in_file(POLICY)}">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(document.title)}</h1>"
        f'<p class="summary">{escape(document.summary)}</p>{sections}<footer>{escape(footer)}</footer></body></html>\n'
    )


def _in_file(policy: str) -> str:
    """A page that was saved has no headers; in it, `frame-ancestors` has no meaning."""
    return escape(policy.partition("; frame-ancestors")[0])


def _part(part: Part) -> str:
    if isinstance(part, Pairs):
        return _table((), [(name, value) for name, value in part.items if value is not None])
    if isinstance(part, Table):
        return _table(part.head, part.rows)
    if isinstance(part, Heading):
        return f"<h3>{escape(part.text)}</h3>"
    if isinstance(part, Picture):
        data = b64encode(part.svg.encode()).decode()
        return f'<p><img src="data:image/svg+xml;base64,{data}" alt="{escape(part.about)}"></p>'
    return f"<p>{escape(part.text)}</p>"


def _table(head: tuple[str, ...], rows: list[tuple[str, str]] | tuple[tuple[str, ...], ...]) -> str:
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    kinds = ("td" if head else "th", "td")
    lines = "".join(
        "<tr>"
        + "".join(f"<{kinds[at > 0]}>{escape(cell)}</{kinds[at > 0]}>" for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table>{top}{lines}</table>"
