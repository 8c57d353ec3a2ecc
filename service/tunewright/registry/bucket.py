"""A bucket of S3, or of a service that has S3's interface: objects below a prefix, read and written as whole files.

s3fs, an extra, is imported here alone, when a bucket is first used. Credentials are found as the AWS SDKs find them: in
the environment, in the files below ~/.aws, at the metadata service of a machine or container.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunewright.atomic import is_disk_full
from tunewright.errors import ArtifactsUnavailable

_CONNECT_SECONDS, _READ_SECONDS = 5, 20
_ATTEMPTS = 3
"""Of one request, with growing pauses (botocore's standard mode): 1 to 6 s where the connection is refused."""
_ATTEMPTS_OF_A_STREAM = 2
"""Of a request whose answer broke off, each with the above."""

_PART, _MOST_PARTS, _PARTS_AT_ONCE = 32 * 2**20, 9_000, 4
"""Large files are uploaded in parts of so many bytes; those at once are in memory. S3 takes 10,000 parts."""

_MOST_REMOVED = 1000
"""Of one request, by S3's interface."""


@dataclass(frozen=True)
class StoredObject:
    bytes: int
    modified: float
    """Unix time."""


class Bucket:
    """The objects below `url`, such as s3://bucket/prefix. Names are relative to it.

    Any method may block, and raises ArtifactsUnavailable where the service cannot be reached or refuses. All may be
    called by several threads, and in a process that was forked.
    """

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._root = self.url.removeprefix("s3://")
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None

    def __str__(self) -> str:
        return f"{self.url} at {self._endpoint}" if self._endpoint else self.url

    def upload(self, file: Path, name: str) -> None:
        """Store a file, which appears as a whole. Raises OSError where it cannot be read."""
        file.stat()  # so that a missing file is not taken for a missing object below
        with self._explained(what=name, missing_is_fault=True):
            part = max(_PART, -(-file.stat().st_size // _MOST_PARTS))
            self._files().put_file(str(file), self._at(name), chunksize=part, max_concurrency=_PARTS_AT_ONCE)

    def write(self, name: str, content: bytes) -> None:
        with self._explained(what=name, missing_is_fault=True):
            self._files().pipe_file(self._at(name), content)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with self._explained(what=name):
            content: bytes = self._files().cat_file(self._at(name))
            return content

    def download(self, name: str, file: Path) -> None:
        """Write the object's content to a file that does not exist. Raises FileNotFoundError, and OSError where the
        disk is full; then the file may hold a part."""
        with self._explained(what=name):
            self._files().get_file(self._at(name), str(file))

    def find(self, prefix: str) -> dict[str, StoredObject]:
        """The objects whose names begin with `prefix`, which ends in a slash."""
        with self._explained(what=prefix, missing_is_fault=True):
            found = self._files().find(self._at(prefix), detail=True)
        return {
            path.removeprefix(f"{self._root}/"): StoredObject(
                int(entry["size"]), entry["LastModified"].timestamp()
            )
            for path, entry in found.items()
        }

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that do not exist are passed over."""
        for start in range(0, len(names), _MOST_REMOVED):
            keys = [{"Key": self._key(name)} for name in names[start : start + _MOST_REMOVED]]
            with self._explained(what=names[start], missing_is_fault=True):
                answer = self._call("delete_objects", Delete={"Objects": keys, "Quiet": True})
                for failed in answer.get("Errors", ())[:1]:
                    raise OSError(f"{failed.get('Key')} was not removed: {failed.get('Code')}")

    def check(self) -> None:
        """Ask whether the bucket exists and may be read."""
        with self._explained(what=self.url, missing_is_fault=True):
            self._call("list_objects_v2", Prefix=self._key(""), MaxKeys=1)

    def unfinished_uploads(self) -> list[tuple[str, str, float]]:
        """Uploads in parts that were not finished: key, id and the Unix time at which each began. At most 1000."""
        with self._explained(what=self.url, missing_is_fault=True):
            found = self._call("list_multipart_uploads", Prefix=self._key(""))
        return [
            (upload["Key"], upload["UploadId"], upload["Initiated"].timestamp())
            for upload in found.get("Uploads", ())
        ]

    def abort_upload(self, key: str, id: str) -> None:
        with self._explained(what=key):
            self._call("abort_multipart_upload", Key=key, UploadId=id)

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._files().call_s3(method, Bucket=self._root.partition("/")[0], **arguments)

    def _key(self, name: str) -> str:
        prefix = self._root.partition("/")[2]
        return f"{prefix}/{name}" if prefix else name

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _files(self) -> Any:
        """The file system of this process: connections do not survive a fork."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), _connect(self._endpoint))
            return self._opened[1]

    @contextmanager
    def _explained(self, *, what: str, missing_is_fault: bool = False) -> Iterator[None]:
        """Turn what s3fs and botocore raise into ArtifactsUnavailable. A full disk and, unless `missing_is_fault`, a
        missing object stay as they are."""
        try:
            yield
        except ArtifactsUnavailable:
            raise
        except FileNotFoundError as error:
            if missing_is_fault or _code(error) == "NoSuchBucket":
                raise self._unavailable(error) from error
            raise FileNotFoundError(errno.ENOENT, f"{self} has no such object", what) from error
        except Exception as error:
            if is_disk_full(error):
                raise
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> ArtifactsUnavailable:
        words = str(error).strip().rstrip(".") or type(error).__name__
        told = " ".join(words.split())[:300]
        is_refusal = _code(error) is not None or isinstance(error, PermissionError) or _has_no_key(error)
        return ArtifactsUnavailable(
            f"The artifacts cannot be reached: {self} {'refuses' if is_refusal else 'does not answer'} ({told}).",
            is_refusal=is_refusal,
        )


def why_no_s3() -> str | None:
    """What is missing to use a bucket; None where nothing is."""
    missing = [name for name in ("s3fs", "aiobotocore") if find_spec(name) is None]
    return f"{missing[0]} is not installed: pip install 'tunewright[s3]'" if missing else None


def _connect(endpoint: str | None) -> Any:
    from s3fs import S3FileSystem

    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        # not every service of its own has a name for each bucket
        **({"s3": {"addressing_style": "path"}} if endpoint else {}),
    }
    files = S3FileSystem(
        endpoint_url=endpoint, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
    )
    files.retries = _ATTEMPTS_OF_A_STREAM
    files.connect()  # here, under a lock: two at once would leave one open
    return files


def _code(error: BaseException | None) -> str | None:
    """The code of S3's own error, such as NoSuchBucket, in the chain of causes of an exception."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            return str(code) if code and status < 500 else None
        error = error.__cause__ or error.__context__
    return None


def _has_no_key(error: BaseException) -> bool:
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
