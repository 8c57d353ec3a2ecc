"""The cache of adapters that were fetched from a hub: a folder of the service, in which the hub's client keeps a folder
for each repository. Sizes are asked before anything is downloaded, and the repositories used longest ago make room."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from tunewright.errors import InvalidRequest, StorageFull, TooLarge, TooManyRequests

_IN_USE = 900.0
"""Seconds after its last use in which a repository is kept: it is being downloaded, or read to be registered."""
_SPARE = 64 * 2**20
"""Bytes of the disk that a download leaves free."""


@dataclass(frozen=True)
class HubCache:
    folder: Path
    largest: int
    """Bytes of all repositories."""
    largest_adapter: int
    """Bytes of the files of one adapter."""

    def fetch(self, hub_id: str, revision: str | None, files: list[str]) -> Path:
        """Download these files of a repository, as far as they are there and not in the cache. Returns their folder,
        whose name is the commit.

        Raises TooLarge, TooManyRequests, StorageFull, InvalidRequest, and what the hub's client raises. Where the hub
        does not say how large the files are, only what is in the cache is used.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        kept = self._folder_of(hub_id)
        with suppress(FileNotFoundError):
            os.utime(kept)
        failed: Exception | None = None
        try:
            self._make_room(hub_id, _size(hub_id, revision, files))
        except (InvalidRequest, TooLarge, TooManyRequests, StorageFull):
            raise
        except Exception as error:  # no network, no such repository, gated, offline
            failed = error
        try:
            found = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=files,
                etag_timeout=10,
                cache_dir=self.folder,
                local_files_only=failed is not None,
            )
        except LocalEntryNotFoundError as error:
            raise failed or error from None
        with suppress(FileNotFoundError):
            os.utime(kept)
        return Path(found)

    def _make_room(self, hub_id: str, needed: int) -> None:
        """Refuse a download that is too large, and remove the repositories used longest ago that are in its way."""
        if needed > min(self.largest_adapter, self.largest):
            option = "--max-adapter-size" if needed > self.largest_adapter else "--max-hub-cache-size"
            limit = min(self.largest_adapter, self.largest)
            raise TooLarge(
                f"{hub_id} has {needed} bytes, more than {limit}, the limit ({option}).", param="hub_id"
            )
        self.folder.mkdir(mode=0o700, exist_ok=True)
        own = self._folder_of(hub_id)
        others = sorted(
            (path.stat().st_mtime, path)
            for path in self.folder.glob("models--*")
            if path != own and path.is_dir()
        )
        sizes = {path: _size_on_disk(path) for _, path in others}
        total = sum(sizes.values()) + max(needed, _size_on_disk(own))
        for used_at, path in others:
            if total <= self.largest:
                break
            if time.time() - used_at > _IN_USE:
                shutil.rmtree(path, ignore_errors=True)
                total -= sizes[path]
        if total > self.largest:
            raise TooManyRequests(
                f"The cache of the hub's adapters has no room for {hub_id} ({needed} bytes) beside those that were "
                "fetched within the last 15 minutes (--max-hub-cache-size): try again later.",
                code="hub_cache_full",
                retry_after=60,
            )
        if needed + _SPARE > shutil.disk_usage(self.folder).free:
            raise StorageFull(
                f"There is no room on the disk for {hub_id}, which has {needed} bytes.", param="hub_id"
            )

    def _folder_of(self, hub_id: str) -> Path:
        """The folder of a repository, as the hub's client names it."""
        return self.folder / f"models--{hub_id.replace('/', '--')}"


def _size(hub_id: str, revision: str | None, files: list[str]) -> int:
    """Bytes of those of the files that the repository has, as the hub says."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=10)
    sizes = [file.size for file in info.siblings or [] if file.rfilename in files]
    if None in sizes:
        raise InvalidRequest(
            f"The hub does not say how large the files of {hub_id} are, so they are not downloaded.",
            param="hub_id",
            code="hub_failed",
        )
    return sum(size for size in sizes if size is not None)


def _size_on_disk(folder: Path) -> int:
    """Bytes of a repository's files. Those of a revision are links to them, and are not counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            total += status.st_size if S_ISREG(status.st_mode) else 0
    return total
