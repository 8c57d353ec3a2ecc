"""What the gateway's answer to a request of a job's process means: an answer, a refusal, or that it has to be asked
again."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

PROJECT_HEADER, KEY_HEADER = "X-Tunewright-Project", "X-Tunewright-Key"
"""Name the project of the job, and the id of the key that has created it, to the service's own gateway."""
SOURCE_HEADER = "X-Tunewright-Source"
"""What the request counts as in the project's usage: `evaluation` (the default), `synthesis`
or `grader`."""


class AskedModel(BaseModel):
    """A model that is asked, as it was when the job was created."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Never an alias."""
    content: str
    """The hash of an adapter's or a full model's weights, the fingerprint of a base: the gateway refuses to answer with
    others."""
    at_once: int
    """Requests in flight at a time."""


def payer_headers(project: str, key: str | None) -> dict[str, str]:
    return {PROJECT_HEADER: project, KEY_HEADER: key or ""}


class Unanswered(Exception):
    """The gateway could not answer now. `is_fault`: it, or the engine, failed at this request."""

    def __init__(self, message: str, *, is_fault: bool = False) -> None:
        super().__init__(message)
        self.is_fault = is_fault


class Refused(Exception):
    """The gateway or the engine refuses the request. `error`: what it has said, as OpenAI's error object."""

    def __init__(self, message: str, code: str | None, status: int = 400, error: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.error = error


def not_answered(status: int, text: bytes) -> Unanswered | Refused:
    """What an answer with another status than 200 means."""
    told: Any = None
    try:
        told = json.loads(text)["error"]
        message, code = str(told["message"]), told.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = text.decode(errors="replace")[:500], None
    if status >= 500 or status in (408, 429):
        return Unanswered(message, is_fault=status not in (429, 503, 507))
    return Refused(message, code if isinstance(code, str) else None, status, told)
