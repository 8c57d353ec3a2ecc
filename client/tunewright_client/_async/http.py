"""Sending requests: retries, reading answers, downloads."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from .._core.call import Call, Settings
from .._core.downloads import download_target, replacing
from .._core.pages import PageData
from .._core.retry import retry_delay
from .._errors import (
    APIConnectionError,
    APITimeoutError,
    StreamInterruptedError,
    TunewrightError,
    connection_error,
    status_error,
)
from .pager import AsyncPager

T = TypeVar("T")


class AsyncAnswer:
    """A response whose body is read piece by piece."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._pieces = response.aiter_bytes()
        self._first: bytes | None = None

    async def read(self) -> bytes | None:
        """The next piece of the body, None at its end. Raises APIConnectionError or APITimeoutError."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await anext(self._pieces, None)
        except httpx2.RequestError as error:
            raise connection_error(error) from error

    async def read_uninterrupted(self, what: str) -> bytes | None:
        """As `read`, but a broken connection raises StreamInterruptedError, which names `what`."""
        try:
            return await self.read()
        except APITimeoutError:
            raise
        except APIConnectionError as error:
            raise StreamInterruptedError(f"{what} broke off: {error}") from error

    async def wait_for_first_byte(self) -> None:
        """Read the first piece and keep it for `read`. Raises StreamInterruptedError where there is none."""
        self._first = await self.read()
        if self._first is None:
            raise StreamInterruptedError("the server ended the stream before its first byte")

    async def close(self) -> None:
        """Release the connection. A response that is not read to its end is aborted."""
        await self.response.aclose()


class AsyncHTTP:
    """Sends calls over an httpx2 client with the settings of one Tunewright client."""

    def __init__(self, client: httpx2.AsyncClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings

    def once(self, seconds: float | None = None) -> AsyncHTTP:
        """The same without retries, each part of a request limited to `seconds`: for loops that retry themselves."""
        return AsyncHTTP(self.client, self.settings.without_retries(seconds))

    async def fetch(self, call: Call[T]) -> T:
        """The result of a call. Raises what `send` raises, and InvalidResponseError."""
        answer = await self.send(call)
        return call.result(answer.response)

    async def send(self, call: Call[Any]) -> AsyncAnswer:
        """Send a call until it succeeds or its retries are used up. A POST keeps its idempotency key.

        Raises APIConnectionError, APITimeoutError, APIStatusError, and StreamInterruptedError for a stream that ends
        before its first byte.
        """
        key = call.idempotency_key
        if key is None and call.method == "POST":
            key = str(uuid.uuid4())
        attempt = 0
        while True:
            try:
                return await self._attempt(call, key)
            except TunewrightError as error:
                delay = retry_delay(error, attempt, self.settings.max_retries)
                if delay is None:
                    raise
            attempt += 1
            await asyncio.sleep(delay)

    async def _attempt(self, call: Call[Any], key: str | None) -> AsyncAnswer:
        with call.request(self.settings, key) as arguments:
            try:
                request = self.client.build_request(**arguments)
                response = await self.client.send(request, stream=call.stream)
            except httpx2.RequestError as error:
                raise connection_error(error) from error
        try:
            if not call.is_success(response):
                await response.aread()
                raise status_error(response)
            answer = AsyncAnswer(response)
            if call.first_byte:
                await answer.wait_for_first_byte()
            return answer
        except httpx2.RequestError as error:
            await response.aclose()
            raise connection_error(error) from error
        except BaseException:
            await response.aclose()
            raise

    def page(self, call: Call[PageData[T]]) -> AsyncPager[T]:
        """The list that a call gives."""
        # async-only begin
        return AsyncPager(call, self)
        # async-only end
        # sync-only: return Page(self.fetch(call), self)

    async def download(self, call: Call[None], name: str, path: str | os.PathLike[str]) -> Path:
        """Write the body of an answer to `path`, or to `<name>.tar` in a folder, and return where it is.

        The file appears whole or not at all. Raises what `send` raises, StreamInterruptedError for a connection that
        breaks after the first byte, and FileNotFoundError for a missing folder.
        """
        target = download_target(path, name)
        answer = await self.send(call)
        try:
            with replacing(target) as file:
                while (piece := await answer.read_uninterrupted("the download")) is not None:
                    file.write(piece)
        finally:
            await answer.close()
        return target


class AsyncResource:
    """Base class of the attributes of the client, such as `client.files`."""

    def __init__(self, http: AsyncHTTP) -> None:
        self._http = http
