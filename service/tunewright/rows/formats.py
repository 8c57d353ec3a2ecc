"""The two formats of training data and their checks.

Chat rows are OpenAI's (`messages`, optionally `tools`); text rows are `prompt` and `completion`. A file has rows of one
format. Every fault is reported with its line number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_FAULTS = 10
_LONGEST_LINE = 32 * 2**20
_SIGNATURES = {
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a zip archive or an Office document",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""The first bytes of formats that are uploaded by mistake."""
_SURROGATE = re.compile(rb"\\ud[89a-f]", re.IGNORECASE)


class DataFormat(StrEnum):
    CHAT = "chat"
    """`{"messages": [...], "tools": [...]?}`"""
    TEXT = "text"
    """`{"prompt": "...", "completion": "..."}`"""


class InvalidData(Exception):
    """The file cannot be trained on; the message names the lines."""


@dataclass(frozen=True)
class Fault:
    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass
class FileSummary:
    """The result of a check."""

    format: DataFormat
    rows: int
    characters: int
    faults: list[Fault] = field(default_factory=list)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file that was checked, with their line numbers (from 1)."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json.loads(line)


def check_file(path: Path) -> FileSummary:
    """Check the whole file, line by line. Raises InvalidData with up to ten faults, or where the file is not JSONL."""
    summary: FileSummary | None = None
    faults: list[Fault] = []
    rows = characters = 0
    first, is_json = b"", False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
                if not line.strip():
                    continue
                rows += 1
                characters += len(line)
                first = first or line
                try:
                    found = _check_line(line)
                    if summary is None:
                        summary = FileSummary(found, 0, 0)
                    elif found is not summary.format:
                        raise _Fault(
                            f"this row has the {found.value} format, the first one the {summary.format.value} format; "
                            "use one format in a file"
                        )
                except _Fault as fault:
                    is_json = is_json or not isinstance(fault, _NotJson)
                    faults.append(Fault(number, str(fault)))
                    if len(faults) >= _MAX_FAULTS or len(line) > _LONGEST_LINE:
                        break
    except OSError as error:
        raise InvalidData(f"the file cannot be read: {error.strerror}") from error
    if rows == 0:
        raise InvalidData("the file is empty: it needs one JSON object per line")
    if summary is None and (detected := _other_format(first, rows, is_json=is_json)):
        raise InvalidData(
            f"the file is {detected}, not JSONL: it needs one JSON object in each line, such as "
            '{"prompt": "2+2=", "completion": " 4"}'
        )
    if faults:
        more = " (and maybe more)" if len(faults) >= _MAX_FAULTS else ""
        raise InvalidData("; ".join(map(str, faults)) + more)
    assert summary is not None
    summary.rows, summary.characters = rows, characters
    return summary


class _Fault(Exception):
    """A fault in a line; the message says which."""


class _NotJson(_Fault):
    """The line is not JSON."""


def _other_format(first: bytes, rows: int, *, is_json: bool) -> str | None:
    """The format of a file without a valid row, detected from its first line; None where it was meant to be JSONL.

    `rows` is how many lines it has; `is_json` is whether one of them is JSON.
    """
    for signature, name in _SIGNATURES.items():
        if first.startswith(signature):
            return name
    text = first.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith(b"[") and (rows == 1 or not is_json):
        return "a JSON array"
    if is_json or len(first) > _LONGEST_LINE:
        return None
    if text == b"{":
        return "JSON with objects over several lines"
    if b"\0" in first:
        return "a binary file"
    return None if text.startswith(b"{") else "plain text or CSV"


def _refuse_constant(name: str) -> Any:
    raise _Fault(f"{name} is not valid JSON")


def _check_line(line: bytes) -> DataFormat:
    if len(line) > _LONGEST_LINE:
        raise _NotJson(f"longer than {_LONGEST_LINE // 2**20} MiB")
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise _NotJson("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _NotJson(
            f"not valid JSON ({error.msg} at column {error.colno}); the file must be JSONL"
        ) from None
    except RecursionError:
        raise _Fault("nested too deeply") from None
    except ValueError as error:  # an integer with more digits than Python parses
        raise _Fault(f"not valid JSON ({error})") from None
    if _SURROGATE.search(line):
        _check_encodable(row)
    if not isinstance(row, dict):
        raise _Fault(f"a row must be a JSON object, not {_json_type(row)}")
    if "messages" in row:
        _check_chat(row)
        return DataFormat.CHAT
    if "prompt" in row or "completion" in row:
        _check_text(row)
        return DataFormat.TEXT
    raise _Fault(f'needs "messages", or "prompt" and "completion"; has {_names(row)}')


def _check_encodable(row: object) -> None:
    """Raise _Fault for half of a surrogate pair, which is valid JSON but cannot be tokenized."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Fault("half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    except RecursionError:
        raise _Fault("nested too deeply") from None


def _check_text(row: dict[str, Any]) -> None:
    for key in ("prompt", "completion"):
        if key not in row:
            raise _Fault(f'"{key}" is missing')
        if not isinstance(row[key], str):
            raise _Fault(f'"{key}" must be a string, not {_json_type(row[key])}')
    if not row["completion"]:
        raise _Fault('"completion" is empty: there is nothing to learn')
    unknown = set(row) - {"prompt", "completion"}
    if unknown:
        raise _Fault(f'unknown field {_names(unknown)}: such a row has "prompt" and "completion" only')


def _check_chat(row: dict[str, Any]) -> None:
    """Null is the same as absent, as in what the openai client's `model_dump()` writes."""
    unknown = {key for key, value in row.items() if value is not None} - {
        "messages",
        "tools",
        "parallel_tool_calls",
    }
    if unknown:
        raise _Fault(
            f'unknown field {_names(unknown)}: such a row has "messages", "tools" and "parallel_tool_calls" only'
        )
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Fault('"messages" must be a list with at least one message')
    _check_tools(row.get("tools"))
    learnable = False
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _Fault(f"{where} must be an object, not {_json_type(message)}")
        role = message.get("role")
        if role not in ROLES:
            raise _Fault(f"{where}.role must be one of {', '.join(ROLES)}; got {json.dumps(role)}")
        calls = message.get("tool_calls")
        if message.get("function_call") is not None:
            raise _Fault(
                f"{where}.function_call is OpenAI's older form, which no chat template has: use tool_calls"
            )
        if role == "assistant":
            weight = message.get("weight")
            if weight not in (0, 1, None) or isinstance(weight, bool):
                raise _Fault(f"{where}.weight must be 0 or 1")
            learnable = learnable or weight != 0
            _check_tool_calls(calls, where)
        elif calls:
            raise _Fault(f"{where} has tool_calls, but only the assistant calls tools")
        _check_content(message.get("content"), where, may_be_missing=role == "assistant" and bool(calls))
    if not learnable:
        raise _Fault("no assistant message to learn from (with weight 1): add what the model should answer")


def _check_content(content: object, where: str, *, may_be_missing: bool) -> None:
    if isinstance(content, str):
        return
    if content is None:
        if not may_be_missing:
            raise _Fault(f"{where}.content is missing")
        return
    if isinstance(content, list):
        for part in content:
            if not (
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            ):
                raise _Fault(f"{where}.content may only have parts of type text")
        return
    raise _Fault(f"{where}.content must be a string, not {_json_type(content)}")


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _Fault('"tools" must be a list')
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Fault(f"tools[{index}].function.name is missing")


def _check_tool_calls(calls: object, where: str) -> None:
    if calls is None or calls == []:
        return
    if not isinstance(calls, list):
        raise _Fault(f"{where}.tool_calls must be a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Fault(f"{where}.tool_calls[{index}].function.name is missing")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise _Fault(f"{where}.tool_calls[{index}].function.arguments is not valid JSON") from None
            if not isinstance(parsed, dict):
                raise _Fault(
                    f"{where}.tool_calls[{index}].function.arguments must be a JSON object, not {_json_type(parsed)}"
                )
        elif not isinstance(arguments, dict | None):
            raise _Fault(f"{where}.tool_calls[{index}].function.arguments must be a JSON string")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _names(names: Any) -> str:
    return ", ".join(json.dumps(str(name)[:40]) for name in sorted(names, key=str)[:5]) or "nothing"
