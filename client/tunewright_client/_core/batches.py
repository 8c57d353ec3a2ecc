"""The routes of uploads, and the results of batches: what each sends and how its answer is parsed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx2
from pydantic import BaseModel

from ..types import BatchResult, UploadPart
from ..types import Upload as UploadRecord
from .call import Call
from .endpoints import path_of
from .upload import Part, Upload

M = TypeVar("M", bound=BaseModel)
BATCHES = "/batches"
PART_SIZE = 64 * 2**20
"""Bytes of a part: the most that the service takes."""


@contextmanager
def local_file(path: Path) -> Generator[tuple[BinaryIO, int], None, None]:
    """A file, open inside the block, and its size in bytes."""
    with path.open("rb") as opened:
        yield opened, os.fstat(opened.fileno()).st_size


def _as(model: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda response: model.model_validate_json(response.content)


def create_upload(
    filename: str, size: int, purpose: str, mime_type: str, expires_after: int | None
) -> Call[UploadRecord]:
    body: dict[str, Any] = {"filename": filename, "bytes": size, "purpose": purpose, "mime_type": mime_type}
    if expires_after is not None:
        body["expires_after"] = {"anchor": "created_at", "seconds": expires_after}
    return Call("POST", "/uploads", _as(UploadRecord), json=body)


def add_part(upload_id: str, data: bytes) -> Call[UploadPart]:
    form = Upload((Part(data, "part"),), {}, name="data")
    return Call("POST", path_of("uploads", upload_id) + "/parts", _as(UploadPart), upload=form, slow=True)


def complete_upload(upload_id: str, part_ids: Sequence[str], md5: str | None) -> Call[UploadRecord]:
    body = {"part_ids": list(part_ids), **({"md5": md5} if md5 is not None else {})}
    return Call("POST", path_of("uploads", upload_id) + "/complete", _as(UploadRecord), json=body, slow=True)


def cancel_upload(upload_id: str) -> Call[UploadRecord]:
    return Call("POST", path_of("uploads", upload_id) + "/cancel", _as(UploadRecord))


def results_of(content: bytes) -> list[BatchResult]:
    """The lines of a file of results."""
    return [BatchResult.model_validate_json(line) for line in content.splitlines() if line.strip()]
