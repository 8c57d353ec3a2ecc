"""Files, adapters, models and generations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from .._core import endpoints, streams
from .._core.upload import FileInput
from ..types import (
    Adapter,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Deleted,
    File,
    Model,
)
from .driver import Stream
from .pages import Page

if TYPE_CHECKING:
    from .client import Tunewright


class _Resource:
    def __init__(self, client: Tunewright) -> None:
        self._client = client


class Files(_Resource):
    """`client.files`."""

    def upload(self, file: FileInput, purpose: str = "fine-tune", filename: str | None = None) -> File:
        """Upload a path, bytes, or a file opened in binary mode, which is sent whole, from its start.

        Raises FileNotFoundError, TypeError for a file opened as text, PayloadTooLargeError, BadRequestError.
        """
        return self._client._fetch(endpoints.upload_file(file, purpose, filename))

    def list(
        self,
        purpose: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] | None = None,
    ) -> Page[File]:
        """The files; `limit` is the size of a page."""
        return self._client._page(endpoints.list_files(purpose, after, limit, order))

    def retrieve(self, file_id: str) -> File:
        """What is known of a file. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_file(file_id))

    def content(self, file_id: str) -> bytes:
        """A file's content, all of it in memory."""
        return self._client._fetch(endpoints.file_content(file_id))

    def delete(self, file_id: str) -> Deleted:
        """Delete a file."""
        return self._client._fetch(endpoints.delete_file(file_id))


class Adapters(_Resource):
    """`client.adapters`. An adapter is named by its id or by its model's name (`ft:...`)."""

    def register(
        self,
        source: FileInput | None = None,
        *,
        path: str | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        base: str | None = None,
        suffix: str | None = None,
        load: bool = True,
        idempotency_key: str | None = None,
    ) -> Adapter:
        """Register an adapter that was not trained by the service, to be served like one that was.

        Give one of: `source`, a PEFT folder or an archive of one (.tar, .tar.gz, .zip), which is uploaded;
        `path`, a folder on the server; `hub_id`, a repository that the server fetches. `base` may be left out
        where the adapter's config names it, or there is one base only.

        Raises ValueError, FileNotFoundError, and BadRequestError with what is wrong with the adapter.
        """
        if sum(way is not None for way in (source, path, hub_id)) != 1:
            raise ValueError("give one of source, path and hub_id")
        if source is not None:
            call = endpoints.upload_adapter(source, base, suffix, load, idempotency_key)
        else:
            fields = {"path": path, "hub_id": hub_id, "revision": revision, "base": base, "suffix": suffix}
            call = endpoints.register_adapter(load, idempotency_key, **fields)
        return self._client._fetch(call)

    def list(
        self,
        after: str | None = None,
        limit: int | None = None,
        *,
        base: str | None = None,
        state: str | None = None,
        loaded: bool | None = None,
        job: str | None = None,
    ) -> Page[Adapter]:
        """Adapters and where each stands, newest first: all, or those of a base, of a job, in a state, loaded
        or not."""
        filters = {"base": base, "state": state, "loaded": loaded, "job": job}
        return self._client._page(endpoints.list_adapters(after, limit, **filters))

    def retrieve(self, adapter: str) -> Adapter:
        """One adapter. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_adapter(adapter))

    def load(self, adapter: str, *, force: bool = False) -> Adapter:
        """Ask for an adapter to be loaded in the engine of its base; see `state` for whether it is.

        With `force`, a quarantined one is served all the same, and `parity.forced` keeps the fact; without,
        raises BadRequestError for such.
        """
        return self._client._fetch(endpoints.act_on_adapter(adapter, "load", force))

    def unload(self, adapter: str) -> Adapter:
        """Unload an adapter after its last request, and unpin it; while `state` is `draining`, some run."""
        return self._client._fetch(endpoints.act_on_adapter(adapter, "unload"))

    def pin(self, adapter: str) -> Adapter:
        """Load an adapter, and never have it evicted for another."""
        return self._client._fetch(endpoints.act_on_adapter(adapter, "pin"))

    def unpin(self, adapter: str) -> Adapter:
        """Let an adapter be evicted again when it is the least recently used."""
        return self._client._fetch(endpoints.act_on_adapter(adapter, "unpin"))

    def check(self, adapter: str) -> Adapter:
        """Have it compared with peft again; while `parity.check_pending`, the verdict is not there."""
        return self._client._fetch(endpoints.act_on_adapter(adapter, "check"))

    def delete(self, adapter: str, *, force: bool = False) -> Deleted:
        """Unload and delete an adapter; with `force` it is first taken out of the aliases that have it.

        Raises BadRequestError while an unfinished job starts from it or, without `force`, an alias has it.
        """
        return self._client._fetch(endpoints.delete_adapter(adapter, force))

    def download(self, adapter: str, path: str | os.PathLike[str]) -> Path:
        """Download an adapter's PEFT folder as a tar file; otherwise like `client.models.download`."""
        call = endpoints.download_adapter(adapter)
        return self._client._run(streams.download(self._client._context, call, adapter, path))


class Models(_Resource):
    """`client.models`."""

    def list(self) -> Page[Model]:
        """Every name that generations can ask for."""
        return self._client._page(endpoints.list_models())

    def retrieve(self, name: str) -> Model:
        """One model. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_model(name))

    def delete(self, name: str, *, force: bool = False) -> Deleted:
        """Delete a fine-tuned model. `force` and errors are those of `client.adapters.delete`."""
        return self._client._fetch(endpoints.delete_model(name, force))

    def download(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Download a model as a tar file to `path` (a folder gets `<name>.tar`), and return where it is.

        The file appears whole or not at all. Raises NotFoundError, and StreamInterruptedError when the
        connection breaks on the way.
        """
        context = self._client._context
        return self._client._run(streams.download(context, endpoints.download_model(name), name, path))


class Chat(_Resource):
    """`client.chat`."""

    @overload
    def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, **params: Any
    ) -> ChatCompletion: ...

    @overload
    def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: Literal[True], **params: Any
    ) -> Stream[ChatCompletionChunk]: ...

    @overload
    def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: bool, **params: Any
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...

    def create(
        self, model: str, messages: Sequence[Mapping[str, Any]], stream: bool = False, **params: Any
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer a conversation; `params` (temperature, max_tokens, ...) go to the engine as they are.

        With `stream`, returns when the first bytes have come, and the chunks follow as the engine makes them;
        from then on nothing is retried. Raises NotFoundError for an unknown model, ServiceUnavailableError
        for one that is not up, StreamInterruptedError for a stream that ends too early.
        """
        call = endpoints.chat(model, messages, params)
        if not stream:
            return self._client._fetch(call)
        chunks: Stream[ChatCompletionChunk] = self._client._stream(
            streams.generation(self._client._context, endpoints.streamed(call), ChatCompletionChunk)
        )
        return chunks._start()


class Completions(_Resource):
    """`client.completions`."""

    @overload
    def create(
        self, model: str, prompt: str | Sequence[Any], stream: Literal[False] = False, **params: Any
    ) -> Completion: ...

    @overload
    def create(
        self, model: str, prompt: str | Sequence[Any], stream: Literal[True], **params: Any
    ) -> Stream[CompletionChunk]: ...

    @overload
    def create(
        self, model: str, prompt: str | Sequence[Any], stream: bool, **params: Any
    ) -> Completion | Stream[CompletionChunk]: ...

    def create(
        self, model: str, prompt: str | Sequence[Any], stream: bool = False, **params: Any
    ) -> Completion | Stream[CompletionChunk]:
        """Continue a prompt (text, token ids, or several of either). Otherwise like `client.chat.create`."""
        call = endpoints.complete(model, prompt, params)
        if not stream:
            return self._client._fetch(call)
        chunks: Stream[CompletionChunk] = self._client._stream(
            streams.generation(self._client._context, endpoints.streamed(call), CompletionChunk)
        )
        return chunks._start()
