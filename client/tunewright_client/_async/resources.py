"""Files, adapters, models, chat and text completions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from .._core import endpoints
from .._core.upload import FileInput
from ..types import (
    Adapter,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    DataReport,
    Deleted,
    File,
    Model,
)
from .http import AsyncResource
from .pager import AsyncPager
from .streams import AsyncStream, open_generation


class AsyncFiles(AsyncResource):
    """`client.files`."""

    async def upload(
        self,
        file: FileInput,
        purpose: str = "fine-tune",
        filename: str | None = None,
        *,
        expires_after: int | None = None,
    ) -> File:
        """Upload a path, bytes, or a file that is open in binary mode, which is sent whole, from its start.

        `expires_after` is the time in seconds after which the server removes it, unless an unfinished job needs it.
        Raises FileNotFoundError, TypeError for a file that is open as text, PayloadTooLargeError, BadRequestError.
        """
        return await self._http.fetch(
            endpoints.upload_file(file, purpose, filename, expires_after=expires_after)
        )

    def list(
        self,
        purpose: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] | None = None,
    ) -> AsyncPager[File]:
        """All files; `limit` is the size of a page."""
        return self._http.page(endpoints.list_files(purpose, after, limit, order))

    async def retrieve(self, file_id: str) -> File:
        """The record of a file. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_file(file_id))

    async def content(self, file_id: str) -> bytes:
        """The whole content of a file, in memory."""
        return await self._http.fetch(endpoints.file_content(file_id))

    async def report(
        self,
        file_id: str,
        model: str | None = None,
        *,
        max_length: int | None = None,
        chat_template: str | None = None,
        columns: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        alpaca: Literal["auto", "chat", "template"] | None = None,
    ) -> DataReport:
        """What is in a file: rows, turns, lengths, duplicates, problems by line; with `model`, a base, also its tokens,
        what is cut at `max_length`, and rows with their trained tokens marked.

        `columns`, `tags` and `alpaca` are those of a job's `data`. Raises NotFoundError, and BadRequestError, whose
        `param` says what is wrong.
        """
        options = {
            "model": model, "max_length": max_length, "chat_template": chat_template, "columns": columns,
            "tags": tags, "alpaca": alpaca,
        }  # fmt: skip
        return await self._http.fetch(endpoints.file_report(file_id, options))

    async def report_picture(
        self,
        file_id: str,
        model: str | None = None,
        *,
        max_length: int | None = None,
        chat_template: str | None = None,
        columns: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        alpaca: Literal["auto", "chat", "template"] | None = None,
    ) -> str:
        """The histogram of the same report as SVG."""
        options = {
            "model": model, "max_length": max_length, "chat_template": chat_template, "columns": columns,
            "tags": tags, "alpaca": alpaca,
        }  # fmt: skip
        return await self._http.fetch(endpoints.file_report_picture(file_id, options))

    async def delete(self, file_id: str) -> Deleted:
        """Delete a file."""
        return await self._http.fetch(endpoints.delete_file(file_id))


class AsyncAdapters(AsyncResource):
    """`client.adapters`. An adapter is named by its id or by the name of its model (`ft:...`)."""

    async def register(
        self,
        source: FileInput | None = None,
        *,
        path: str | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        base: str | None = None,
        suffix: str | None = None,
        folder: str | None = None,
        load: bool = True,
        idempotency_key: str | None = None,
    ) -> Adapter:
        """Register an adapter that was trained elsewhere. It is served like the service's own adapters.

        Give one of: `source`, a folder of peft or mlx-lm or an archive of one (.tar, .tar.gz, .zip), which is uploaded;
        `path`, a folder on the server; `hub_id`, a repository that the server downloads. `base` may be left out where
        the adapter's config names it or the service has a single base. `folder` says which folder of the archive has
        the adapter, where it is not the highest one.

        Raises ValueError, FileNotFoundError, and BadRequestError, whose message says what is wrong with the
        adapter.
        """
        if sum(way is not None for way in (source, path, hub_id)) != 1:
            raise ValueError("give one of source, path and hub_id")
        if folder is not None and source is None:
            raise ValueError("folder goes with source")
        if source is not None:
            form = {"base": base, "suffix": suffix, "folder": folder}
            call = endpoints.upload_adapter(source, load, idempotency_key, **form)
        else:
            fields = {"path": path, "hub_id": hub_id, "revision": revision, "base": base, "suffix": suffix}
            call = endpoints.register_adapter(load, idempotency_key, **fields)
        return await self._http.fetch(call)

    def list(
        self,
        after: str | None = None,
        limit: int | None = None,
        *,
        base: str | None = None,
        state: str | None = None,
        loaded: bool | None = None,
        job: str | None = None,
    ) -> AsyncPager[Adapter]:
        """All adapters, newest first, or those of a base, of a job, in a state, loaded or not loaded."""
        filters = {"base": base, "state": state, "loaded": loaded, "job": job}
        return self._http.page(endpoints.list_adapters(after, limit, **filters))

    async def retrieve(self, adapter: str) -> Adapter:
        """One adapter. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_adapter(adapter))

    async def load(self, adapter: str, *, force: bool = False) -> Adapter:
        """Load an adapter in the engine of its base. `state` says whether it is loaded.

        Raises BadRequestError for a quarantined adapter. With `force` it is served nevertheless, which is recorded in
        `parity.forced`.
        """
        return await self._http.fetch(endpoints.act_on_adapter(adapter, "load", force))

    async def unload(self, adapter: str) -> Adapter:
        """Unload an adapter after its last request, and unpin it. While requests run, `state` is `draining`."""
        return await self._http.fetch(endpoints.act_on_adapter(adapter, "unload"))

    async def pin(self, adapter: str) -> Adapter:
        """Load an adapter, and never evict it for another one."""
        return await self._http.fetch(endpoints.act_on_adapter(adapter, "pin"))

    async def unpin(self, adapter: str) -> Adapter:
        """Let an adapter be evicted again when it is the least recently used one."""
        return await self._http.fetch(endpoints.act_on_adapter(adapter, "unpin"))

    async def check(self, adapter: str) -> Adapter:
        """Compare an adapter with peft again. While `parity.check_pending` is true, there is no verdict yet."""
        return await self._http.fetch(endpoints.act_on_adapter(adapter, "check"))

    async def delete(self, adapter: str, *, force: bool = False) -> Deleted:
        """Unload and delete an adapter. With `force` it is first taken out of the aliases that have it.

        Raises BadRequestError while an unfinished job starts from it or, without `force`, an alias has it.
        """
        return await self._http.fetch(endpoints.delete_adapter(adapter, force))

    async def download(self, adapter: str, path: str | os.PathLike[str]) -> Path:
        """Download an adapter's PEFT folder as a tar file; otherwise like `client.models.download`."""
        return await self._http.download(endpoints.download_adapter(adapter), adapter, path)


class AsyncModels(AsyncResource):
    """`client.models`."""

    def list(self) -> AsyncPager[Model]:
        """All models that generations can use: bases, fine-tuned models, aliases."""
        return self._http.page(endpoints.list_models())

    async def retrieve(self, name: str) -> Model:
        """One model. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_model(name))

    async def report(self, name: str) -> str:
        """All that is known of a base or a tuned model, as one page of HTML for a reviewer: training, data, parity,
        evaluations, gates, lineage. Raises NotFoundError, and BadRequestError for an alias with several targets."""
        return await self._http.fetch(endpoints.model_report(name))

    async def card(self, name: str) -> str:
        """The same without pictures as a model card: Markdown with front matter, as hubs have it in README.md."""
        return await self._http.fetch(endpoints.model_card(name))

    async def delete(self, name: str, *, force: bool = False) -> Deleted:
        """Delete a fine-tuned model. `force` and errors are those of `client.adapters.delete`."""
        return await self._http.fetch(endpoints.delete_model(name, force))

    async def download(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Download a model as a tar file to `path` (in a folder: to `<name>.tar`), and return the path of the file.

        The file appears whole or not at all. Raises NotFoundError, and StreamInterruptedError for a connection that
        breaks during the download.
        """
        return await self._http.download(endpoints.download_model(name), name, path)


class AsyncChat(AsyncResource):
    """`client.chat`."""

    @overload
    async def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, **params: Any
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[True], **params: Any
    ) -> AsyncStream[ChatCompletionChunk]: ...

    @overload
    async def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: bool, **params: Any
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...

    async def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: bool = False, **params: Any
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Answer a conversation. `params` (temperature, max_tokens, ...) are passed to the engine unchanged.

        With `stream`, returns when the first bytes have come; the chunks follow as the engine makes them, and nothing
        is retried any more. Raises NotFoundError for an unknown model, ServiceUnavailableError for one that is not
        running, StreamInterruptedError for a stream that ends too early.
        """
        call = endpoints.chat(model, messages, params)
        if not stream:
            return await self._http.fetch(call)
        return await open_generation(self._http, endpoints.streamed(call), ChatCompletionChunk)


class AsyncCompletions(AsyncResource):
    """`client.completions`."""

    @overload
    async def create(
        self, model: str, prompt: str | Sequence[Any], stream: Literal[False] = False, **params: Any
    ) -> Completion: ...

    @overload
    async def create(
        self, model: str, prompt: str | Sequence[Any], stream: Literal[True], **params: Any
    ) -> AsyncStream[CompletionChunk]: ...

    @overload
    async def create(
        self, model: str, prompt: str | Sequence[Any], stream: bool, **params: Any
    ) -> Completion | AsyncStream[CompletionChunk]: ...

    async def create(
        self, model: str, prompt: str | Sequence[Any], stream: bool = False, **params: Any
    ) -> Completion | AsyncStream[CompletionChunk]:
        """Continue a prompt: text, token ids, or several of either. Otherwise like `client.chat.create`."""
        call = endpoints.complete(model, prompt, params)
        if not stream:
            return await self._http.fetch(call)
        return await open_generation(self._http, endpoints.streamed(call), CompletionChunk)
