"""Batches: `client.batches`, and the record with the methods of one batch. Uploads: `client.uploads`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from .._core import endpoints
from .._core.batches import (
    BATCHES,
    PART_SIZE,
    add_part,
    cancel_upload,
    complete_upload,
    create_upload,
    local_file,
    results_of,
)
from .._core.inputs import job_body
from .._errors import TunewrightError
from ..types import BatchRecord, BatchResult, File, Upload, UploadPart
from .http import AsyncResource
from .job_resource import AsyncBoundWork, AsyncWorkResource


class AsyncBatch(AsyncBoundWork, BatchRecord):
    """A batch as it was when it was read, with methods that ask its client. The record does not change: `refresh`
    returns a new one."""

    async def results(self) -> list[BatchResult]:
        """See `client.batches.results`."""
        return await cast("AsyncBatches", self._resource).results(self.id)


class AsyncBatches(AsyncWorkResource[AsyncBatch]):
    """`client.batches`: files of requests, answered below live traffic. A batch is a job, so `job_id` arguments take
    the id of a batch. `cancel` ends one with what is answered until then."""

    _path = BATCHES
    _record = AsyncBatch

    async def create(
        self,
        file: str | Path,
        endpoint: str = "/v1/chat/completions",
        *,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        output_expires_after: int | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncBatch:
        """Have the requests of a file answered.

        - file: the id of a file for the purpose batch, or a pathlib.Path of a local file, which is uploaded first. Each
          line has custom_id, method, url and body
        - endpoint: the url of all of them
        - completion_window: hours or days, such as 24h or 7d. What is not answered then is in the error file
        - output_expires_after: the time in seconds after which the server removes the files of results
        - idempotency_key: all calls with the same key give the same batch

        A line that is wrong fails the batch; `faults` says why. Raises BadRequestError, and FileNotFoundError for a
        missing local file.
        """
        key = idempotency_key or str(uuid.uuid4())
        if isinstance(file, Path):
            call = endpoints.upload_file(file, "batch", None, f"{key}-input-file-id")
            file = (await self._http.fetch(call)).id
        expiry = None
        if output_expires_after is not None:
            expiry = {"anchor": "created_at", "seconds": output_expires_after}
        fields = {
            "input_file_id": file,
            "endpoint": endpoint,
            "completion_window": completion_window,
            "metadata": metadata,
            "output_expires_after": expiry,
        }
        return await self._http.fetch(endpoints.create_job(self._path, self._parse, job_body(fields), key))

    async def results(self, batch_id: str) -> list[BatchResult]:
        """The results of a batch that has ended, in memory: the answers, and behind them the errors. Each request has
        one, in no order."""
        batch = await self.retrieve(batch_id)
        found: list[BatchResult] = []
        for id in (batch.output_file_id, batch.error_file_id):
            if id is not None:
                found += results_of(await self._http.fetch(endpoints.file_content(id)))
        return found


class AsyncUploads(AsyncResource):
    """`client.uploads`: large files in parts, within an hour."""

    async def create(
        self,
        filename: str,
        bytes: int,
        purpose: str = "fine-tune",
        *,
        mime_type: str = "application/octet-stream",
        expires_after: int | None = None,
    ) -> Upload:
        """Announce a file of so many bytes. `expires_after` is the time in seconds after which the server removes it.
        Raises BadRequestError."""
        return await self._http.fetch(create_upload(filename, bytes, purpose, mime_type, expires_after))

    async def add_part(self, upload_id: str, data: bytes) -> UploadPart:
        """Send a part of up to 64 MiB. Raises PayloadTooLargeError, BadRequestError for an upload that has ended."""
        return await self._http.fetch(add_part(upload_id, data))

    async def complete(self, upload_id: str, part_ids: Sequence[str], *, md5: str | None = None) -> Upload:
        """Make the file of its parts, in this order. `md5` of the whole file, in hexadecimal, is compared. Raises
        BadRequestError where something differs; the upload stays as it is then."""
        return await self._http.fetch(complete_upload(upload_id, part_ids, md5))

    async def cancel(self, upload_id: str) -> Upload:
        """End an upload without a file, and remove its parts."""
        return await self._http.fetch(cancel_upload(upload_id))

    async def upload_file(
        self,
        file: str | os.PathLike[str],
        purpose: str = "fine-tune",
        *,
        filename: str | None = None,
        part_size: int = PART_SIZE,
        expires_after: int | None = None,
    ) -> File:
        """Upload a local file in parts, one after the other, each of which is retried alone; one of them is in memory.
        The whole is compared by its MD5.

        Where it fails, the upload is cancelled. Raises FileNotFoundError, ValueError for a part_size below 1 or above
        64 MiB, and what the other methods raise.
        """
        if not 1 <= part_size <= PART_SIZE:
            raise ValueError(f"part_size must be 1 to {PART_SIZE} bytes")
        path = Path(file)
        digest, parts = hashlib.md5(usedforsecurity=False), list[str]()
        with local_file(path) as (source, size):
            upload = await self.create(filename or path.name, size, purpose, expires_after=expires_after)
            try:
                while data := source.read(part_size):
                    digest.update(data)
                    parts.append((await self.add_part(upload.id, data)).id)
                done = await self.complete(upload.id, parts, md5=digest.hexdigest())
            except BaseException:
                await self._give_up(upload.id)
                raise
        if done.file is None:
            raise TunewrightError(f"upload {upload.id} is {done.status}, and its file is gone")
        return done.file

    async def _give_up(self, upload_id: str) -> None:
        """Cancel an upload whose parts are of no use. One that cannot be cancelled expires."""
        with contextlib.suppress(TunewrightError):
            await self._http.once(5.0).fetch(cancel_upload(upload_id))
