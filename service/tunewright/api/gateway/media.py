"""Which media a generation may name by URL: what the engines may fetch for their clients.

The engines refuse other hosts too (`engine/command.py`), whatever the form of the request. This check comes first to
say what the operator can do, and to refuse files and other schemes before an engine fails over them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

from tunewright.errors import UnsupportedFeature

_KEYS = ("image_url", "audio_url", "video_url", "file_url")
_CONVERSATIONS = ("messages", "input")


def check_media(body: dict[str, Any], domains: Collection[str]) -> None:
    """Raises UnsupportedFeature where a message has the URL of a medium on another host than `domains`. Media that are
    in the request itself, as a `data:` URL, are left to the engine."""
    for param, url in _urls(body):
        if url[:5].lower() == "data:":
            continue
        host = _host(url)
        if host is None or host not in domains:
            given = f"of {host[:100]}" if host else "that is no address on the web"
            raise UnsupportedFeature(
                f"`{param}` is a URL {given}, and this service fetches no media from there: send the file in the "
                "request (a `data:` URL, in base64), or have the operator allow the host with --media-domain.",
                param=param,
                code="media_url_not_allowed",
            )


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _urls(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The media's URLs and their places in the body."""
    for key in _CONVERSATIONS:
        for number, message in enumerate(_list(body.get(key))):
            place = f"{key}[{number}]"
            yield from _urls_of_part(place, message)
            if isinstance(message, dict):
                for inner in ("content", "output"):
                    yield from _urls_of_part(f"{place}.{inner}", message.get(inner))
                    for position, part in enumerate(_list(message.get(inner))):
                        yield from _urls_of_part(f"{place}.{inner}[{position}]", part)


def _urls_of_part(place: str, part: Any) -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        for key in _KEYS:
            value = part.get(key)
            url = value.get("url") if isinstance(value, dict) else value
            if isinstance(url, str) and url:
                yield f"{place}.{key}", url


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
