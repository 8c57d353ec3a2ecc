"""The artifact store: adapters and whole models, immutable, each named by the hash of its content.

`ArtifactStore` is the interface for the rest of the service; `LocalArtifacts` implements it on the local disk, and
`registry/remote_artifacts.py` in a bucket, with a cache on the local disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunewright.atomic import publish_folder
from tunewright.ids import path_name
from tunewright.registry.content import artifact_files, artifact_sha256, folder_size
from tunewright.registry.removals import Removals


@dataclass(frozen=True)
class StoredArtifact:
    bytes: int
    since: float
    """Unix time at which it was stored."""


class ArtifactStore(Protocol):
    """Stores artifacts. Several processes use a store at the same time.

    Any method but `local` may block (it reads, copies, waits, or asks a server), so none may be called in an event
    loop; and may raise ArtifactsUnavailable where the artifacts are on a server.
    """

    def create(self) -> None:
        """Make the store ready for use; does nothing where it is. Raises OSError."""

    def put(self, folder: Path, kept: ExitStack | None = None) -> str:
        """Store the artifact in `folder`, and return the hash of its content.

        An adapter is stored as its two files, a whole model as all files directly in the folder. The folder must not
        change during the call and is not needed afterwards. The artifact appears as a whole, also after a crash;
        storing the same again changes nothing, and may happen concurrently. Where `kept` is given, `keeping` is
        entered in it before the artifact appears: close it when the artifact is listed in the database. Raises
        OSError, and ValueError where an adapter's config is not JSON.
        """

    def local(self, sha256: str) -> Path:
        """The folder on this machine with the artifact's files, once it was fetched. They must not be changed.

        The path is always the same, also for an artifact that does not exist or was removed; opening its files then
        raises FileNotFoundError. Files that are open at a removal can be read to their end.
        """

    def fetch(self, sha256: str) -> Path:
        """Bring the artifact to this machine, unless it is there; returns its folder (`local`), which is whole.

        It stays there while `keeping` is held, while an unfinished job starts from it, and while an engine has it; and
        otherwise as long as there is room. Where it does not exist, this raises FileNotFoundError, or opening its files
        does.
        """

    def keeping(self, sha256: str) -> AbstractContextManager[None]:
        """Keep all processes from removing this artifact, whether it exists or is yet to be stored.

        It may be held several times. Waits while the artifact is being removed; ends with the process at the latest.
        """

    def remove(self, sha256: str, is_used: Callable[[], object]) -> bool:
        """Remove it unless `is_used()`. Returns whether it was removed; no error where it does not exist.

        Waits until nothing holds it, and only then calls `is_used`.
        """

    def hashes(self) -> set[str]:
        """The hashes of the artifacts that exist now."""

    def stat(self, sha256: str) -> StoredArtifact:
        """Its size and age. Raises FileNotFoundError where it does not exist."""


class LocalArtifacts:
    """Artifacts in `root/<sha256>/`. Unfinished ones are in `tmp`, on the same file system."""

    def __init__(self, root: Path, tmp: Path, removals: Removals) -> None:
        self._root = root
        self._tmp = tmp
        self._removals = removals

    def create(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)

    def put(self, folder: Path, kept: ExitStack | None = None) -> str:
        sha256 = artifact_sha256(folder)
        if kept is not None:
            kept.enter_context(self.keeping(sha256))
        publish_artifact(folder, self.local(sha256), self._tmp)
        return sha256

    def local(self, sha256: str) -> Path:
        return self._root / path_name(sha256)

    def fetch(self, sha256: str) -> Path:
        return self.local(sha256)

    def keeping(self, sha256: str) -> AbstractContextManager[None]:
        return self._removals.keeping(sha256)

    def remove(self, sha256: str, is_used: Callable[[], object]) -> bool:
        return self._removals.remove(self.local(sha256), is_used)

    def hashes(self) -> set[str]:
        return {path.name for path in self._root.glob("[0-9a-f]" * 64)}

    def stat(self, sha256: str) -> StoredArtifact:
        folder = self.local(sha256)
        since = folder.stat().st_mtime  # first, since a missing folder has a size of 0
        return StoredArtifact(folder_size(folder), since)


def publish_artifact(source: Path, final: Path, tmp: Path) -> None:
    """Make the artifact in `source` appear in the folder `final`, as a whole; does nothing where it is there. `tmp` is
    on the same file system."""
    if final.exists():
        return
    temporary = Path(tempfile.mkdtemp(prefix="artifact-", dir=tmp))
    try:
        for file in artifact_files(source):
            _link(file, temporary / file.name)
        publish_folder(temporary, final)
    except OSError:
        if not final.exists():  # else another process published the same meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(file: Path, target: Path) -> None:
    try:  # immutable on both sides: no second copy of the bytes
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
