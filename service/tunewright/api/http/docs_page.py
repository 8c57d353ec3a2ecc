"""`/docs`: the OpenAPI document as one page of HTML, without scripts and without anything from elsewhere.

FastAPI's own page loads Swagger UI from a foreign server, whose script could then do here what the user can.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_FASTAPIS = ("/docs", "/docs/oauth2-redirect", "/redoc")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{background:#f4f4f4;padding:.7rem;overflow:auto}"
    "summary{cursor:pointer;padding:.3rem 0}.method{display:inline-block;width:4.5rem;font-weight:bold}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.1rem .8rem .1rem 0}"
)


def serve_docs(app: FastAPI) -> None:
    """Replace FastAPI's pages with this one."""
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", "") not in _FASTAPIS
    ]

    def docs(_: Request) -> Response:
        return HTMLResponse(page_of(app.openapi()), headers={"Content-Security-Policy": _POLICY})

    app.router.routes.append(Route("/docs", docs, methods=["GET"], include_in_schema=False))


def page_of(document: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = _operation(document, method.upper(), path, operation)
            by_tag.setdefault(operation["tags"][0], []).append(shown)
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in by_tag.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><p>{escape(info['description'])}</p>"
        '<p>This is the content of <a href="openapi.json">openapi.json</a>, which also has the schemas.</p>'
        f"{sections}</body></html>"
    )


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{escape(operation['description'])}</p>"] if operation.get("description") else []
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
            f"<td>{escape(one.get('description', ''))}</td></tr>"
            for one in parameters
        )
        parts.append(f"<table><tr><th>Parameter</th><th>in</th><th></th></tr>{rows}</table>")
    body = operation.get("requestBody", {}).get("content", {})
    parts += [_example(document, f"Request, {kind}", media) for kind, media in body.items()]
    for status, response in operation["responses"].items():
        if status >= "400":
            parts.append(f"<p><b>{escape(status)}</b> {escape(response['description'])}</p>")
        else:
            content = response.get("content", {})
            parts += [_example(document, f"{status}, {kind}", media) for kind, media in content.items()]
    return (
        f'<details><summary><span class="method">{method}</span> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary>{''.join(parts)}</details>"
    )


def _example(document: dict[str, Any], title: str, media: dict[str, Any]) -> str:
    schema = media.get("schema", {})
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    examples = document["components"]["schemas"].get(name, {}).get("examples", [])
    example = media.get("example", examples[0] if examples else None)
    shown = f"<p><b>{escape(title)}</b> {escape(name)}</p>"
    if example is None:
        return shown
    text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
    return f"{shown}<pre>{escape(text)}</pre>"
