"""The bytes of uploads: each part is a file on disk, and the whole is made of them, piece by piece."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from typing import BinaryIO

from tunewright.api.files.purposes import first_status, storing
from tunewright.api.http.context import ServiceContext
from tunewright.atomic import sync_folder
from tunewright.errors import InvalidRequest, NotFound, TunewrightError, quoted
from tunewright.ids import new_id
from tunewright.store.records import FileRecord
from tunewright.store.uploads import PartRecord, UploadRecord, UploadState

PART_LIMIT = 64 * 2**20
"""Bytes of a part, as in OpenAI's API."""
_BLOCK = 2**20


def keep_part(context: ServiceContext, upload: UploadRecord, source: BinaryIO) -> PartRecord:
    """Write and sync a part before listing it: what was answered is not lost. Raises InvalidRequest, StorageFull."""
    workspace, id = context.workspace, new_id("part")
    temporary, size = workspace.tmp / id, 0
    try:
        with storing():
            with temporary.open("wb") as target:
                while block := source.read(_BLOCK):
                    size += len(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            if not size:
                raise InvalidRequest("The part is empty.", param="data")
            with workspace.keeping(upload.id):
                folder = workspace.upload(upload.id)
                folder.mkdir(mode=0o700, exist_ok=True)
                os.replace(temporary, folder / id)
                sync_folder(folder)
                sync_folder(workspace.uploads)
                try:
                    # a client that repeats a part which was not answered leaves one that is not used
                    return context.store.uploads.add_part(upload, id, size, 2 * upload.bytes + PART_LIMIT)
                except TunewrightError:
                    (folder / id).unlink(missing_ok=True)
                    raise
    finally:
        temporary.unlink(missing_ok=True)


def make_file(
    context: ServiceContext, upload: UploadRecord, part_ids: Sequence[str], md5: str | None
) -> FileRecord:
    """Make the file of its parts and list it, which ends the upload. Repeated with the same parts, it returns the file.
    Raises InvalidRequest, NotFound and StorageFull."""
    done = _earlier(context, upload, part_ids)
    if done is not None:
        return done
    _check_parts(context, upload, part_ids)
    workspace, id = context.workspace, new_id("file")
    temporary = workspace.tmp / id
    digest, checksum = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with storing():
            with workspace.keeping(upload.id), temporary.open("wb") as target:
                for part_id in part_ids:
                    with (workspace.upload(upload.id) / part_id).open("rb") as part:
                        while block := part.read(_BLOCK):
                            digest.update(block)
                            checksum.update(block)
                            target.write(block)
                target.flush()
                os.fsync(target.fileno())
            if md5 is not None and md5.lower() != checksum.hexdigest():
                raise InvalidRequest(
                    f"The parts have the MD5 {checksum.hexdigest()} together, not {quoted(md5)}: the upload stays "
                    "as it is; send the parts again that differ.",
                    param="md5",
                    code="checksum_mismatch",
                )
            record = _listed(context, upload, part_ids, id, digest.hexdigest())
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"Upload {upload.id} has ended: create another.", code="upload_not_pending"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    workspace.remove_upload(upload.id)
    return record


def _listed(
    context: ServiceContext, upload: UploadRecord, part_ids: Sequence[str], id: str, sha256: str
) -> FileRecord:
    """Move the file to its place and list it."""
    workspace = context.workspace
    with workspace.keeping(id):
        workspace.keep_file(workspace.tmp / id, id)
        created_at = time.time()
        row = {
            "id": id,
            "filename": upload.filename,
            "purpose": upload.purpose,
            "bytes": upload.bytes,
            "sha256": sha256,
            "created_at": created_at,
            "expires_at": None if upload.file_seconds is None else int(created_at) + upload.file_seconds,
            "status": first_status(upload.purpose),
        }
        try:
            return context.store.uploads.complete(upload.id, part_ids, row)
        except TunewrightError:
            workspace.file(id).unlink()
            now = context.store.uploads.get(upload.id)
            done = _earlier(context, now, part_ids) if now is not None else None
            if done is not None:  # the same request was repeated while this one ran
                return done
            raise


def _earlier(context: ServiceContext, upload: UploadRecord, part_ids: Sequence[str]) -> FileRecord | None:
    """The file that the same request has made before. Raises InvalidRequest and NotFound."""
    if upload.state is UploadState.PENDING:
        return None
    if upload.state is not UploadState.COMPLETED or upload.parts != list(part_ids) or upload.file_id is None:
        raise InvalidRequest(
            f"Upload {upload.id} has ended ({upload.state.value}): create another.", code="upload_not_pending"
        )
    record = context.store.files.get(upload.file_id)
    if record is None:
        raise NotFound(f"The file of this upload, {upload.file_id}, was deleted.", code="file_not_found")
    return record


def _check_parts(context: ServiceContext, upload: UploadRecord, part_ids: Sequence[str]) -> None:
    there = {part.id: part.bytes for part in context.store.uploads.parts(upload.id)}
    for id in part_ids:
        if id not in there:
            raise InvalidRequest(
                f"Upload {upload.id} has no part {quoted(id)}.", param="part_ids", code="part_not_found"
            )
    if len(set(part_ids)) < len(part_ids):
        raise InvalidRequest("A part is named twice.", param="part_ids")
    total = sum(there[id] for id in part_ids)
    if total != upload.bytes:
        raise InvalidRequest(
            f"The parts have {total} bytes together, and the upload was created with {upload.bytes}: add what is "
            "missing, or cancel it and create another.",
            param="part_ids",
            code="wrong_size",
        )
