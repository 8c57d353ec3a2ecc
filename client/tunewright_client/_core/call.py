"""One request of the API as data, and the settings of a client that sends it."""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import ValidationError

from .._errors import InvalidResponseError
from .._version import __version__
from .upload import FilePart, Upload

T = TypeVar("T")

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_RETRIES = 2
CONNECT_SECONDS = 5.0
# For requests that the service answers from its own state.
CONTROL_SECONDS = 60.0
# For generations, uploads and downloads. It limits the time to the next byte, not the whole transfer. It is longer
# than the service's own limit for a generation (600 s), so that the service's error, which must not be retried, comes
# before the client's timeout.
SLOW_SECONDS = 660.0
# Addresses that are never reached through a proxy named in the environment.
LOOPBACK = ("all://localhost", "all://127.0.0.1", "all://[::1]")
# The same hosts over plain HTTP.
_PLAIN = tuple(pattern.replace("all://", "http://") for pattern in LOOPBACK)
USER_AGENT = f"tunewright-client/{__version__}"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a client.

    - root: the server's address without /v1
    - api_key: the key or token that is sent, or what is called for one before each attempt of a request
    - ca_file: a PEM file with the certificates of those who may vouch for the server; None: the system's
    - timeout: the caller's own timeout; None selects the default of each request
    """

    root: str
    api_key: str | Callable[[], str] | None = dataclasses.field(default=None, repr=False)
    timeout: httpx2.Timeout | None = None
    max_retries: int = DEFAULT_MAX_RETRIES
    ca_file: str | None = None

    @classmethod
    def build(
        cls,
        base_url: str | None,
        api_key: str | Callable[[], str] | None,
        timeout: float | httpx2.Timeout | None,
        max_retries: int,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> Settings:
        """Settings from the arguments, else from TUNEWRIGHT_BASE_URL, TUNEWRIGHT_API_KEY and TUNEWRIGHT_CA_FILE, else
        the defaults.

        Raises ValueError for an address without http:// or https:// and for a negative max_retries, TypeError for a
        timeout of another type.
        """
        root = (base_url or os.environ.get("TUNEWRIGHT_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
        root = root.removesuffix("/v1").rstrip("/")
        if not root.startswith(("http://", "https://")):
            raise ValueError(f"base_url must start with http:// or https://, not {root!r}")
        if max_retries < 0:
            raise ValueError("max_retries must not be negative")
        key = api_key if api_key is not None else os.environ.get("TUNEWRIGHT_API_KEY")
        if not callable(key):
            key = (key or "").strip() or None
        trusted = os.fspath(ca_file) if ca_file is not None else os.environ.get("TUNEWRIGHT_CA_FILE") or None
        return cls(root, key, _timeout(timeout), max_retries, trusted)

    def certificates(self) -> ssl.SSLContext | bool:
        """What says whom to trust: the system's certificates, or nobody where the server is on this machine and asked
        without TLS. Reading them would take longer than all else that a client does when it is made. With `ca_file`
        these alone. Raises ValueError where that cannot be read."""
        if self.ca_file is not None:
            try:
                return ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:  # ssl.SSLError is one
                why = "it has no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror
                raise ValueError(f"ca_file {self.ca_file} cannot be used: {why}") from error
        address = httpx2.URL(self.root)
        host = f"[{address.host}]" if ":" in address.host else address.host
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if f"{address.scheme}://{host}" in _PLAIN else True

    def with_options(self, timeout: float | httpx2.Timeout | None, max_retries: int | None) -> Settings:
        """A copy with another timeout or number of retries. An argument that is None changes nothing."""
        return dataclasses.replace(
            self,
            timeout=self.timeout if timeout is None else _timeout(timeout),
            max_retries=self.max_retries if max_retries is None else max_retries,
        )

    def timeout_for(self, slow: bool) -> httpx2.Timeout:
        """The timeout of a request: the caller's own, else the default for fast or slow requests."""
        return self.timeout or httpx2.Timeout(
            SLOW_SECONDS if slow else CONTROL_SECONDS, connect=CONNECT_SECONDS
        )

    def without_retries(self, seconds: float | None) -> Settings:
        """A copy without retries, in which each part of a request takes at most `seconds` (None: no further limit).

        For loops that have a deadline and a retry policy of their own.
        """
        timeout = self.timeout_for(slow=False)
        if seconds is not None:
            parts = timeout.as_dict()
            timeout = httpx2.Timeout(
                **{name: seconds if part is None else min(part, seconds) for name, part in parts.items()}
            )
        return dataclasses.replace(self, timeout=timeout, max_retries=0)


Params = Mapping[str, str | int | bool | Sequence[str] | None]


def _no_params() -> Params:
    return {}


def _no_headers() -> Mapping[str, str]:
    return {}


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request of the API.

    - path: the path below /v1 with its parts quoted, or below the root with `outside_v1`
    - parse: makes the result of a successful response; raises InvalidResponseError, ValueError or pydantic's
      ValidationError
    - params: the query; values that are None are left out, and lists repeated
    - accepted: statuses other than 2xx that are no errors
    - stream: the body is read piece by piece
    - first_byte: the first piece of the body belongs to the attempt, so that a connection that is lost before it is
      retried
    - slow: uses the long default timeout
    """

    method: str
    path: str
    parse: Callable[[httpx2.Response], T]
    params: Params = dataclasses.field(default_factory=_no_params)
    json: Any = None
    upload: Upload | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=_no_headers)
    idempotency_key: str | None = None
    accepted: frozenset[int] = frozenset()
    outside_v1: bool = False
    stream: bool = False
    first_byte: bool = False
    slow: bool = False

    @contextmanager
    def request(
        self, settings: Settings, idempotency_key: str | None
    ) -> Generator[dict[str, Any], None, None]:
        """The arguments of httpx2's `build_request` for one attempt. Files to upload are open inside the block."""
        headers = {"user-agent": USER_AGENT, "accept": "application/json", **self.headers}
        key = settings.api_key() if callable(settings.api_key) else settings.api_key
        if key:
            headers["authorization"] = f"Bearer {key}"
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": f"{settings.root}{'' if self.outside_v1 else '/v1'}{self.path}",
            "headers": headers,
            "params": {name: value for name, value in self.params.items() if value is not None} or None,
            "json": self.json,
            "timeout": settings.timeout_for(self.slow),
        }
        if self.upload is None:
            yield arguments
            return
        # All attempts use one boundary, so that a retried upload is the same request byte for byte.
        headers["content-type"] = f"multipart/form-data; boundary=tunewright-{self.upload.boundary}"
        files: list[FilePart]
        with self.upload.opened() as files:
            yield {**arguments, "data": self.upload.fields, "files": files}

    def is_success(self, response: httpx2.Response) -> bool:
        """Whether the status is 2xx or one of `accepted`."""
        return response.is_success or response.status_code in self.accepted

    def result(self, response: httpx2.Response) -> T:
        """The parsed body of a successful response. Raises InvalidResponseError where it is not what the API
        describes."""
        try:
            return self.parse(response)
        except (ValidationError, ValueError) as error:
            content_type = response.headers.get("content-type", "no content type")
            raise InvalidResponseError(
                f"{self.method} {response.url.path} answered {response.status_code} ({content_type}), which is not "
                "what Tunewright's API describes: is base_url right?"
            ) from error


def check_http_client(client: object, expected: type[httpx2.Client | httpx2.AsyncClient]) -> None:
    """Raises TypeError unless `client` is None or an `expected`: a client of httpx fails much later otherwise."""
    if client is not None and not isinstance(client, expected):
        raise TypeError(f"http_client must be an httpx2.{expected.__name__}, not {_type_name(client)}")


def _timeout(timeout: object) -> httpx2.Timeout | None:
    """A number of seconds limits each part of a request: connecting, writing, reading, waiting for a connection."""
    if timeout is None or isinstance(timeout, httpx2.Timeout):
        return timeout
    if isinstance(timeout, int | float):
        return httpx2.Timeout(timeout)
    raise TypeError(f"timeout must be a number of seconds or an httpx2.Timeout, not {_type_name(timeout)}")


def _type_name(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
