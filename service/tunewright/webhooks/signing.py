"""Secrets of endpoints, and signatures by Standard Webhooks, as OpenAI's are
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).

No secret is stored: it is derived from the key of the data folder and a random salt in the endpoint's row. The key is a
file that its owner alone can read; no database, log or backup has it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tunewright.atomic import sync_folder
from tunewright.store.webhook_records import WebhookEndpoint

PREFIX = "whsec_"
_KEY_BYTES = 32
_CONTEXT = b"tunewright webhook secret 1"


class KeyLost(Exception):
    """The key of the data folder is not the one from which the endpoint's secret was derived."""


class SigningKey:
    """The key of a data folder, from which the secrets of all endpoints are derived."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the key, or make it where there is none. Safe for several processes at once. Raises OSError, and
        ValueError where the file has no key."""
        try:
            return cls(_read(path))
        except FileNotFoundError:
            pass
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was first
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        return cls(_read(path))

    def secret(self, endpoint_id: str, salt: str) -> str:
        """The secret as its owner gets it: whsec_ and base64 of 32 bytes."""
        message = b"\0".join((_CONTEXT, endpoint_id.encode(), salt.encode()))
        return PREFIX + base64.b64encode(hmac.digest(self._key, message, hashlib.sha256)).decode()

    def secrets_of(self, endpoint: WebhookEndpoint, now: float) -> Sequence[str]:
        """The secrets that sign now, the present one first. Raises KeyLost."""
        present = self.secret(endpoint.id, endpoint.salt)
        if hint_of(present) != endpoint.hint:
            raise KeyLost(
                "The file webhooks.key of the data folder is not the one that this endpoint's secret was made with:"
                " put it back, or rotate the secret."
            )
        if endpoint.old_salt is None or endpoint.old_until is None or now >= endpoint.old_until:
            return [present]
        return [present, self.secret(endpoint.id, endpoint.old_salt)]


def new_salt() -> str:
    return secrets.token_hex(16)


def hint_of(secret: str) -> str:
    """What is shown of a secret: its last characters."""
    return f"{PREFIX}...{secret[-5:]}"


def signed_headers(id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature by each of the secrets. `timestamp` is in Unix seconds."""
    message = f"{id}.{timestamp}.".encode() + body
    signatures = [
        base64.b64encode(
            hmac.digest(base64.b64decode(secret.removeprefix(PREFIX)), message, hashlib.sha256)
        ).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _read(path: Path) -> bytes:
    try:
        key = base64.b64decode(path.read_bytes().strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"{path} has no key of webhooks ({_KEY_BYTES} bytes in base64): put the file back, or remove it and rotate"
            " the secrets of all endpoints"
        )
    return key
