"""One request of the API as data, and the client's settings it is sent with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import httpx

from .._version import __version__
from .upload import FilePart, Upload

T = TypeVar("T")

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_RETRIES = 2
CONNECT_SECONDS = 5.0
CONTROL_SECONDS = 60.0  # what the service answers from its own state
SLOW_SECONDS = (
    660.0  # generations, uploads and downloads: the time to the next byte, not in all; more than the
)
# service gives a generation (600), so that its own error comes first, which is not to be retried
LOOPBACK = (
    "all://localhost",
    "all://127.0.0.1",
    "all://[::1]",
)  # never reached through an environment's proxy
USER_AGENT = f"tunewright-client/{__version__}"


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A client's settings. `root` is the server's address without /v1; `timeout` None stands for the
    defaults."""

    root: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    timeout: httpx.Timeout | None = None
    max_retries: int = DEFAULT_MAX_RETRIES

    @classmethod
    def build(
        cls,
        base_url: str | None,
        api_key: str | None,
        timeout: float | httpx.Timeout | None,
        max_retries: int,
    ) -> Context:
        """The settings given, else those of TUNEWRIGHT_BASE_URL and TUNEWRIGHT_API_KEY, else the defaults.

        Raises ValueError for an address without http:// or https://, and for a negative max_retries.
        """
        root = (base_url or os.environ.get("TUNEWRIGHT_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
        root = root.removesuffix("/v1").rstrip("/")
        if not root.startswith(("http://", "https://")):
            raise ValueError(f"base_url must start with http:// or https://, not {root!r}")
        if max_retries < 0:
            raise ValueError("max_retries must not be negative")
        key = api_key if api_key is not None else os.environ.get("TUNEWRIGHT_API_KEY")
        return cls(root, (key or "").strip() or None, as_timeout(timeout), max_retries)

    def with_options(self, timeout: float | httpx.Timeout | None, max_retries: int | None) -> Context:
        """The same settings but for those that are given."""
        return dataclasses.replace(
            self,
            timeout=self.timeout if timeout is None else as_timeout(timeout),
            max_retries=self.max_retries if max_retries is None else max_retries,
        )

    def timeout_of(self, slow: bool) -> httpx.Timeout:
        """The timeout of a request: the caller's own, else the default of its kind."""
        return self.timeout or httpx.Timeout(
            SLOW_SECONDS if slow else CONTROL_SECONDS, connect=CONNECT_SECONDS
        )

    def capped(self, seconds: float | None) -> Context:
        """These settings without retries, each part of a request taking at most `seconds`: for flows that
        have a deadline and a retry policy of their own."""
        timeout = self.timeout_of(slow=False)
        if seconds is not None:
            parts = timeout.as_dict()
            timeout = httpx.Timeout(
                **{name: seconds if part is None else min(part, seconds) for name, part in parts.items()}
            )
        return dataclasses.replace(self, timeout=timeout, max_retries=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """The arguments of httpx's build_request."""

    method: str
    url: str
    headers: Mapping[str, str]
    params: Mapping[str, Any] | None
    json: Any
    data: Mapping[str, str] | None
    files: list[FilePart] | None
    timeout: httpx.Timeout

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request of the API.

    - path: under /v1, its parts quoted; `outside_v1` for the few beside it
    - params: the query; those that are None are left out
    - parse: makes the result of a successful response; raises InvalidResponseError or pydantic's
      ValidationError
    - accepted: statuses other than 2xx that are answers too
    - stream: the body is read piece by piece; `first_byte`: and its first piece is part of the attempt, so
      that a connection lost before it is retried
    - slow: takes the long default timeout
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, str | int | bool | None] = dataclasses.field(default_factory=dict)
    json: Any = None
    upload: Upload | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    idempotency_key: str | None = None
    accepted: frozenset[int] = frozenset()
    outside_v1: bool = False
    stream: bool = False
    first_byte: bool = False
    slow: bool = False

    @contextmanager
    def prepared(self, context: Context, idempotency_key: str | None) -> Iterator[Prepared]:
        """The request of one attempt; an uploaded file is open for as long as the attempt lasts."""
        headers = {"user-agent": USER_AGENT, "accept": "application/json", **self.headers}
        if context.api_key:
            headers["authorization"] = f"Bearer {context.api_key}"
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        params = {name: value for name, value in self.params.items() if value is not None}
        url = f"{context.root}{'' if self.outside_v1 else '/v1'}{self.path}"

        def request(files: list[FilePart] | None) -> Prepared:
            return Prepared(
                method=self.method,
                url=url,
                headers=headers,
                params=params or None,
                json=self.json,
                data=self.upload.fields if self.upload else None,
                files=files,
                timeout=context.timeout_of(self.slow),
            )

        if self.upload is None:
            yield request(None)
            return
        # One boundary for all attempts: a retried upload is the same request byte for byte.
        headers["content-type"] = f"multipart/form-data; boundary=tunewright-{self.upload.boundary}"
        with self.upload.opened() as files:
            yield request(files)


def as_timeout(timeout: float | httpx.Timeout | None) -> httpx.Timeout | None:
    """A number of seconds is the limit of each part of a request: connect, write, read, wait for a place."""
    return httpx.Timeout(timeout) if isinstance(timeout, int | float) else timeout
