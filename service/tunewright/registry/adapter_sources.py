"""Finds the two files of an adapter: in a folder on the server, or on a hub."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunewright.errors import (
    InvalidAdapter,
    InvalidRequest,
    TooLarge,
    TooManyRequests,
    TunewrightError,
    UnsupportedFeature,
    quoted,
)
from tunewright.registry.adapter_check import CONFIG_FILE, MLX_WEIGHTS_FILE, WEIGHTS_FILE, pickled
from tunewright.registry.adapter_config import LARGEST_CONFIG
from tunewright.registry.hub_cache import HubCache

_HUB_NAME = re.compile(r"\b[\w.-]{1,96}\b", re.ASCII)
"""The name of an organization or a repository, as huggingface_hub has it in `validate_repo_id`."""
_REVISION_PART = re.compile(r"\w[\w.+=@#-]*", re.ASCII)
_LONGEST_REVISION = 200
_MOST_FETCHES = 4
_fetches = threading.BoundedSemaphore(_MOST_FETCHES)
"""Downloads from the hub. Each has its place until its thread ends, which may be long after its request has."""
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt")


@dataclass(frozen=True)
class AdapterFiles:
    """The text of the config, and the opened weights, which are seekable."""

    config: bytes
    weights: BinaryIO


@contextmanager
def open_folder(folder: Path, largest: int, roots: Sequence[Path] | None = None) -> Iterator[AdapterFiles]:
    """Open the files of a folder of peft or mlx-lm. With `roots`, the opened files lie in one of them, also where links
    lead there.

    Raises InvalidAdapter where a file is missing, TooLarge above `largest` bytes, and OSError.
    """
    with ExitStack() as opened:
        config, weights = (
            opened.enter_context(_open(folder / name, roots)) for name in (CONFIG_FILE, _weights(folder))
        )
        if os.fstat(weights.fileno()).st_size > largest:
            raise TooLarge(f"{WEIGHTS_FILE} has more than {largest} bytes, the limit (--max-adapter-size).")
        text = config.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise TooLarge(f"{CONFIG_FILE} has more than {LARGEST_CONFIG} bytes.")
        yield AdapterFiles(text, weights)


def _weights(folder: Path) -> str:
    is_mlx = not (folder / WEIGHTS_FILE).exists() and (folder / MLX_WEIGHTS_FILE).exists()
    return MLX_WEIGHTS_FILE if is_mlx else WEIGHTS_FILE


def folder_on_server(path: str, roots: Sequence[Path]) -> Path:
    """The folder at `path`, with every link resolved. Raises InvalidRequest where it is in none of `roots`."""
    if not roots:
        raise UnsupportedFeature(
            "Adapters are taken from no folder of this server: start it with --adapter-root FOLDER, or upload the "
            "adapter.",
            param="path",
        )
    folder = Path(os.path.realpath(path))
    if not os.path.isabs(path) or not _is_in(folder, roots):
        raise InvalidRequest(
            f"{quoted(path)} is in no folder that adapters are taken from: give a full path in one that "
            "--adapter-root names.",
            param="path",
        )
    if not os.path.isdir(folder):
        raise InvalidRequest(f"{quoted(path)} is not a folder on the server.", param="path")
    return folder


def _is_in(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)


def _unblocked(path: str, flags: int) -> int:
    """Open without blocking, since opening a pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open(path: Path, roots: Sequence[Path] | None) -> BinaryIO:
    try:
        file = open(path, "rb", opener=_unblocked)  # noqa: SIM115 (the caller's stack closes it)
    except (FileNotFoundError, NotADirectoryError):
        found = next((name for name in _PICKLED if (path.parent / name).exists()), None)
        if path.name == WEIGHTS_FILE and found:
            raise pickled(f"{found}, which the folder has in place of {WEIGHTS_FILE}, is pickled") from None
        raise InvalidAdapter(
            f"There is no {path.name}: the folder is not an adapter that peft saved."
        ) from None
    except OSError as error:
        raise InvalidAdapter(f"{path.name} cannot be read: {error.strerror}.") from error
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidAdapter(f"{path.name} is not a regular file.")
        # The path of the opened file; its name may belong to another file by now.
        real = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        if roots is not None and not _is_in(real, roots):
            raise InvalidAdapter(
                f"{path.name} is a link that leads out of the folders that --adapter-root names."
            )
    except BaseException:
        file.close()
        raise
    return file


def fetch_from_hub(hub_id: str, revision: str | None, timeout: float, cache: HubCache) -> Path:
    """Download the adapter's two files. Returns their folder in the cache, whose name is the commit.

    Raises InvalidRequest where the names are none of the hub's, with the hub's reason, or after `timeout` seconds;
    TooManyRequests; and what the cache refuses.
    """
    _check_hub_names(hub_id, revision)
    if not _fetches.acquire(blocking=False):
        raise TooManyRequests(
            f"{_MOST_FETCHES} adapters are being fetched from the hub, which is the limit: wait for one to end.",
            code="too_many_registrations",
            retry_after=10,
        )
    done: Future[Path] = Future()

    def fetch() -> None:
        try:
            done.set_result(cache.fetch(hub_id, revision, [CONFIG_FILE, WEIGHTS_FILE, MLX_WEIGHTS_FILE]))
        except BaseException as error:
            done.set_exception(error)
        finally:
            _fetches.release()

    # In a daemon thread, since the timeouts of the library do not cover all of its requests.
    threading.Thread(target=fetch, name=f"fetch {hub_id}", daemon=True).start()
    try:
        return done.result(timeout)
    except TimeoutError as error:
        raise _failed(hub_id, f"it took more than {timeout:.0f} s; the downloaded part is kept") from error
    except TunewrightError:
        raise
    except Exception as error:
        # The client raises many types: no network, no such repository, gated, offline.
        raise _failed(hub_id, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


def _check_hub_names(hub_id: str, revision: str | None) -> None:
    """Raise InvalidRequest for what is no repository or no revision.

    The library uses both as parts of paths in its cache, unchecked where the hub cannot be reached: a revision with
    `..`, or from the root, names any file of the server.
    """
    names = hub_id.split("/")
    if (
        len(names) != 2
        or not all(_HUB_NAME.fullmatch(name) for name in names)
        or ".." in hub_id
        or "--" in hub_id
        or hub_id.endswith(".git")
    ):
        raise InvalidRequest(
            f"{quoted(hub_id)} is no id on the hub; they look like org/name.", param="hub_id"
        )
    if revision is not None and (len(revision) > _LONGEST_REVISION or not _is_revision(revision)):
        raise InvalidRequest(
            f"{quoted(revision)} is no revision on the hub: give the name of a branch or a tag, or a commit.",
            param="revision",
        )


def _is_revision(name: str) -> bool:
    """Whether git takes it for the name of a branch, a tag or a commit (git-check-ref-format)."""
    parts = name.split("/")
    return ".." not in name and all(
        _REVISION_PART.fullmatch(part) and not part.endswith((".", ".lock")) for part in parts
    )


def _failed(hub_id: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{hub_id} could not be fetched from the hub: {why.rstrip('.')}. Where this server cannot reach the hub, "
        "download the adapter elsewhere and upload it.",
        param="hub_id",
        code="hub_failed",
    )
