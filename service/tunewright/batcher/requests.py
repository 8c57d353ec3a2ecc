"""The file of a batch: JSONL of `custom_id`, `method`, `url` and `body`. It is read line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MOST_REQUESTS = 50_000
LONGEST_LINE = 32 * 2**20
"""Bytes: the largest body of a generation."""
LONGEST_ID = 512
MOST_FAULTS = 100
"""Faults that are told of one file."""
_MOST_LEVELS = 128
"""As in the body of a request: the process that asks writes it again, which takes more of the stack than to read it."""
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Request:
    """A request, and where its line is in the file."""

    custom_id: str
    model: str
    offset: int
    length: int

    def body(self, file: BinaryIO) -> Any:
        """What is to be sent."""
        file.seek(self.offset)
        return json.loads(file.read(self.length))["body"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a line. `line` counts from 1; None: with the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass
class Checked:
    """What the check of a file has found."""

    requests: int = 0
    faults: list[Fault] = field(default_factory=list)
    """At most `MOST_FAULTS`."""
    models: dict[str, int] = field(default_factory=dict)
    """The models that are asked, each with the first line that names it."""


def check_requests(file: BinaryIO, endpoint: str) -> Checked:
    """Check all lines of a file whose requests go to `endpoint`."""
    found = Checked()
    seen: dict[str, int] = {}
    for number, _, line in _lines(file):
        if len(found.faults) >= MOST_FAULTS:
            break
        if found.requests >= MOST_REQUESTS:
            message = f"The file has more than {MOST_REQUESTS} requests: split it."
            found.faults.append(Fault("too_many_requests", message, number))
            break
        found.requests += 1
        request = _parsed(line, number)
        fault = request if isinstance(request, Fault) else _fault(request, number, endpoint, seen)
        if fault is not None:
            found.faults.append(fault)
        elif isinstance(request, dict):
            seen[request["custom_id"]] = number
            found.models.setdefault(request["body"]["model"], number)
    if not found.requests:
        found.faults.append(Fault("empty_file", "The file has no requests."))
    return found


def requests_of(file: BinaryIO) -> Iterator[Request]:
    """The requests of a file that was checked."""
    for _, offset, line in _lines(file):
        request = json.loads(line)
        yield Request(request["custom_id"], request["body"]["model"], offset, len(line))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """The number, from 1, the offset and the content of each line that is not blank."""
    offset = 0
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        begin, size = offset, len(line)
        while not line.endswith(b"\n") and (
            rest := file.readline(LONGEST_LINE)
        ):  # too long: the rest is left out
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        offset += size
        if number == 1 and line.startswith(_MARK):
            line, begin = line[len(_MARK) :], begin + len(_MARK)
        if line.strip():
            yield number, begin, line


def _parsed(line: bytes, number: int) -> dict[str, Any] | Fault:
    if len(line) > LONGEST_LINE:
        return Fault("line_too_long", f"The line has more than {LONGEST_LINE} bytes.", number)
    try:
        request = json.loads(line.decode())
    except (ValueError, RecursionError):
        request = None
    if line.count(b"[") + line.count(b"{") > _MOST_LEVELS and _is_deep(request):
        text = f"The line is nested too deeply: objects and lists may have up to {_MOST_LEVELS} levels."
        return Fault("invalid_json_line", text, number)
    if not isinstance(request, dict):
        return Fault("invalid_json_line", "The line is not a JSON object.", number)
    return request


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS + 1):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _fault(request: dict[str, Any], number: int, endpoint: str, seen: dict[str, int]) -> Fault | None:
    """What is wrong with a request; None where nothing is."""
    for name in ("custom_id", "method", "url", "body"):
        if name not in request:
            return Fault("missing_required_parameter", f"`{name}` is missing.", number, name)
    id, body = request["custom_id"], request["body"]
    if not isinstance(id, str) or not 1 <= len(id) <= LONGEST_ID or not _is_text(id):
        text = f"`custom_id` must be a text of 1 to {LONGEST_ID} characters."
        return Fault("invalid_custom_id", text, number, "custom_id")
    if id in seen:
        text = f"The custom_id is that of line {seen[id]} too: it must be another one in each line."
        return Fault("duplicate_custom_id", text, number, "custom_id")
    if request["method"] != "POST":
        return Fault("invalid_method", "`method` must be POST.", number, "method")
    if request["url"] != endpoint:
        return Fault("invalid_url", f"`url` must be {endpoint}, the endpoint of the batch.", number, "url")
    if not isinstance(body, dict):
        return Fault("invalid_body", "`body` must be an object.", number, "body")
    model = body.get("model")
    if not isinstance(model, str) or not model or not _is_text(model):
        return Fault("missing_required_parameter", "`body.model` must name a model.", number, "body.model")
    if body.get("stream"):
        return Fault(
            "unsupported_parameter", "`body.stream` cannot be true in a batch.", number, "body.stream"
        )
    if body.get("background"):
        return Fault(
            "unsupported_parameter", "`body.background` cannot be true in a batch.", number, "body.background"
        )
    return None


def _is_text(text: str) -> bool:
    """Whether it can be stored and sent: no U+0000, and no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
