"""What the command line says of a failure."""

from __future__ import annotations

import os
import traceback

from tunewright_client import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    JobFailedError,
    TunewrightError,
)


def explain(error: Exception) -> str:
    """The message of an error; with advice where it is one of the SDK, with its place where it is a bug."""
    if isinstance(error, TunewrightError):
        return _advice(error)
    if isinstance(error, OSError | ValueError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}:{where.lineno}"
    return f"this is a bug, please report it: {type(error).__name__}: {error} ({place})"


def _advice(error: TunewrightError) -> str:
    if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError):
        return (
            f"cannot reach the service: {error}. Start it with `tunewright serve`, or give its address with"
            " --url or TUNEWRIGHT_BASE_URL."
        )
    if isinstance(error, AuthenticationError):
        return f"{error}. Give the service's key in TUNEWRIGHT_API_KEY or with --api-key."
    if isinstance(error, JobFailedError):
        return f"{error.job.id} failed: {error}" + (f" ({error.code})" if error.code else "")
    return str(error)
