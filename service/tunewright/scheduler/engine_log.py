"""Finds the reason why an engine ended, in its log."""

from __future__ import annotations

import re
from pathlib import Path

from tunewright.log_files import last_text, parts_of_run
from tunewright.scheduler.processes import Exit
from tunewright.store.records import Deployment

_PREFIX = re.compile(r"^(?:\([^)]*\)\s?)?(?:(?:ERROR|WARNING|INFO|DEBUG) \d\S* \S+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"^(?P<text>(?:[A-Za-z_.]*(?:Error|Exception)\b|.*: error:).*)$")
_DEATH_LINE = re.compile(r".*\b(?P<text>Worker proc \S+ died unexpectedly \(exit code: \S+\)).*$")
_CORE_DEATH = re.compile(r"engine core exited unexpectedly|EngineDeadError")
_USELESS = (
    "Engine core initialization failed",
    "See root cause above",
    "EngineDeadError",
    "stream generator",
)
_MOST_LINES, _MOST_TEXT = 4, 500
_NO_ERROR = "its log names no error"
_KILLED = "was killed or crashed; if the machine's memory ran out, the system's log says so"


def last_error(log_file: Path) -> str:
    """The last error in the log, without vLLM's prefixes and with the lines that belong to it; else the message about a
    process that died."""
    try:
        text = last_text(parts_of_run(log_file), 65536)
    except OSError:
        return "no log"
    lines = [_PREFIX.sub("", line.rstrip()) for line in text.splitlines() if line.strip()]
    errors = [
        number
        for number, line in enumerate(lines)
        if _ERROR.match(line) and not any(useless in line for useless in _USELESS)
    ]
    if errors:
        return " ".join(_with_its_own(lines, errors[-1]))[:_MOST_TEXT]
    deaths = [m["text"] for m in map(_DEATH_LINE.match, lines) if m]
    if not deaths and any(map(_CORE_DEATH.search, lines)):
        deaths = [f"EngineCore {_KILLED}"]
    return (deaths or [_NO_ERROR])[-1][:_MOST_TEXT]


def reason_of_end(how: Exit, log_file: Path, deployment: Deployment | None) -> str:
    """How the engine's server has ended, and the last error in vLLM's log."""
    ended = "" if how.code is None else f" with {how.description}"
    rest = f"GET /v1/deployments/{deployment.id}/logs" if deployment else f"see {log_file}"
    return f"it ended{ended}: {last_error(log_file)} ({rest})"


def reason_of_lost(part: str, log_file: Path) -> str:
    """Why the process `part` of vLLM has ended beside its server: the last error in the log, where it wrote one."""
    error = last_error(log_file)
    return f"its process {part} " + (_KILLED if error == _NO_ERROR else f"ended: {error}")


def _with_its_own(lines: list[str], at: int) -> list[str]:
    """The error at `at`, and the indented lines after it, where pydantic has the details."""
    found = [lines[at].strip()]
    for line in lines[at + 1 : at + _MOST_LINES]:
        if not line.startswith("  ") or line.strip().startswith(("File ", "^", "For further information")):
            break
        found.append(line.strip())
    return found
