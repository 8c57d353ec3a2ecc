"""Finds a file by its id."""

from __future__ import annotations

from tunewright.api.http.context import ServiceContext
from tunewright.errors import NotFound, quoted
from tunewright.store.records import FileRecord


def find_file(context: ServiceContext, id: str) -> FileRecord:
    """Raises NotFound."""
    record = context.store.files.get(id)
    if record is None:
        raise not_found(id)
    return record


def not_found(id: str) -> NotFound:
    return NotFound(
        f"No such file: {quoted(id)}. It was never uploaded, or it was deleted: by a request or by a limit on disk "
        "use.",
        param="file_id",
        code="file_not_found",
    )
