"""Owns the identifiers the API hands out.

The prefixes are OpenAI's (`file-`, `ftjob-`, `ftevent-`, `ftckpt-`), so that logs and habits carry over.
"""

from __future__ import annotations

import re
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_SUFFIX = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


def new_id(prefix: str) -> str:
    """A fresh identifier, e.g. `ftjob-Zk3...` (24 random letters and digits, about 142 bits)."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def model_name(base: str, suffix: str | None, job_id: str, checkpoint_step: int | None = None) -> str:
    """The public name of a job's product: `ft:<base>:<suffix>:<id>`, with `:ckpt-step-<n>` for a checkpoint."""
    name = f"ft:{base}:{suffix or ''}:{job_id.removeprefix('ftjob-')[:8]}"
    return name if checkpoint_step is None else f"{name}:ckpt-step-{checkpoint_step}"


def is_suffix(text: str) -> bool:
    """Whether `text` can stand in a model name: up to 64 letters, digits, dots, dashes, underscores."""
    return bool(_SUFFIX.fullmatch(text))


def result_file_id(job_id: str) -> str:
    """The file of a finished job's metrics."""
    return "file-" + job_id.removeprefix("ftjob-")
