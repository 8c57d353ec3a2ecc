"""The identifiers that the API returns.

The prefixes are OpenAI's (`file-`, `ftjob-`, `ftevent-`, `ftckpt-`), so that they are familiar to its users.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import time

_ALPHABET = string.ascii_letters + string.digits
_PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_SUFFIX = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


def new_id(prefix: str) -> str:
    """A fresh identifier, e.g. `ftjob-Zk3...` (24 random letters and digits, about 142 bits)."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def id_for_key(prefix: str, key: str) -> str:
    """The identifier of what a request with this Idempotency-Key creates: the same for each repeat of the request."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
    letters = []
    for _ in range(24):
        number, place = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[place])
    return f"{prefix}-" + "".join(letters)


def key_in_project(key: str | None, project: str) -> str | None:
    """An Idempotency-Key so that it is unique among those of all projects: as it is in `default`, where no key of
    another project can be the same, and hashed in others."""
    if key is None or (project == "default" and not key.startswith("proj-")):
        return key
    return f"proj-{hashlib.sha256(f'{project} {key}'.encode()).hexdigest()}"


def model_name(base: str, suffix: str | None, id: str, checkpoint_step: int | None = None) -> str:
    """The public name of a job's product or of a registered adapter, made from its id: `ft:<base>:<suffix>:<id>`, with
    `:ckpt-step-<n>` for a checkpoint."""
    name = f"ft:{base}:{suffix or ''}:{id.rpartition('-')[2][:8]}"
    return name if checkpoint_step is None else f"{name}:ckpt-step-{checkpoint_step}"


def is_suffix(text: str) -> bool:
    """Whether `text` is valid as a model name's suffix: up to 64 letters, digits, dots, dashes, underscores."""
    return bool(_SUFFIX.fullmatch(text))


def path_name(id: str) -> str:
    """`id`, which is the name of a file or a folder. Raises ValueError where it could lead to another folder: the
    database is restored from archives, or changed by others."""
    if not _PATH_NAME.fullmatch(id):
        raise ValueError(f"{id[:80]!r} is no id: it cannot be the name of a file")
    return id


def result_file_id(job_id: str) -> str:
    """The id of the file that has a finished job's metrics."""
    return "file-" + job_id.removeprefix("ftjob-")


def utc_stamp() -> str:
    """The current time for use in file names: `20260131T093000Z`."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
