"""What files are uploaded for, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunewright.atomic import is_disk_full
from tunewright.errors import Internal, InvalidRequest, StorageFull, UnsupportedFeature, quoted
from tunewright.store.states import FileStatus

PURPOSES = ("fine-tune", "batch")
_OTHER_PURPOSES = frozenset({"assistants", "vision", "user_data", "evals"})
"""OpenAI's."""


def check_purpose(purpose: str) -> None:
    """Raises InvalidRequest."""
    if purpose in _OTHER_PURPOSES:
        raise UnsupportedFeature(
            f"Files are taken for the purposes {' and '.join(PURPOSES)}; {purpose} is not offered.",
            param="purpose",
        )
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"Files are taken for the purposes {' and '.join(PURPOSES)}, not {quoted(purpose)}.",
            param="purpose",
        )


def first_status(purpose: str) -> FileStatus:
    """The status of a new file: rows are checked for training alone, and the lines of a batch when it is created."""
    return FileStatus.UPLOADED if purpose == "fine-tune" else FileStatus.PROCESSED


def file_name(given: str | None) -> str:
    """The last part of the given path, without unprintable characters, which could corrupt a header or a terminal."""
    name = (given or "").replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in name if character.isprintable())[:255]
    return shown if shown.strip(". ") else "upload.jsonl"  # `..` is a folder to who writes it to a disk


@contextmanager
def storing() -> Iterator[None]:
    """Says what an error of the disk means while a file is stored. Raises StorageFull and Internal."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(
                "The disk is full, so the file could not be stored. Nothing of it is kept: free some space and upload "
                "it again."
            ) from error
        raise Internal(
            f"The file could not be stored: {error.strerror}. Nothing of it is kept.", code="storage_failed"
        ) from error
