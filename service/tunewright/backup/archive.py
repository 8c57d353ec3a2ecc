"""The archive: an uncompressed tar of plain files, whose last member, `manifest.json`, has the hash of every other.

    tunewright.db                the database, as one file
    files/<id>                   uploads and result files
    artifacts/<sha256>/<name>    adapters and full models
    jobs/<id>/<name>             job folders
    manifest.json

Nothing else may be in it, so nothing is ever written elsewhere than under these names. It is unpacked by this module
and not by `tarfile.extract`: owners, modes, links and devices are ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tunewright.atomic import sync_folder
from tunewright.backup.errors import BackupError

FORMAT = 1
DATABASE = "tunewright.db"
FOLDERS = ("files", "jobs", "artifacts")
_MANIFEST = "manifest.json"
_MAX_MANIFEST = 512 * 2**20
_BLOCK = 2**20

OnBytes = Callable[[int], None]
"""Called after each block that was read, with its number of bytes."""


class Member(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The members of an archive, and the version and time at which it was made."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    version: str
    """The version of Tunewright."""
    revision: str
    """The revision of the database."""
    created_at: str
    """UTC, as in 2026-01-31T09:30:00Z."""
    counts: dict[str, int]
    members: dict[str, Member]

    @property
    def bytes(self) -> int:
        return sum(member.bytes for member in self.members.values())


@dataclass(frozen=True)
class Opened:
    """An open file, with its current size: a file that grows is archived up to there."""

    name: str
    file: IO[bytes]
    size: int
    mtime: float

    @classmethod
    def of(cls, file: IO[bytes], name: str) -> Self:
        status = os.fstat(file.fileno())
        return cls(name, file, status.st_size, status.st_mtime)


class ArchiveWriter:
    """Writes the members in the order in which they are added, then the manifest."""

    def __init__(self, target: IO[bytes]) -> None:
        self._tar = tarfile.TarFile(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_BLOCK)
        self._members: dict[str, Member] = {}

    def add(self, source: Opened, on_bytes: OnBytes) -> None:
        reader = _Hashing(source.file, on_bytes)
        # addfile only calls read(n)
        self._tar.addfile(_header(source), reader)  # type: ignore[arg-type]
        self._members[source.name] = Member(bytes=source.size, sha256=reader.digest.hexdigest())

    def finish(self, *, version: str, revision: str, created_at: str, counts: dict[str, int]) -> Manifest:
        manifest = Manifest(
            version=version, revision=revision, created_at=created_at, counts=counts, members=self._members
        )
        values = manifest.model_dump()
        text = json.dumps({**values, "sha256": _digest(values)}, indent=1).encode()
        opened = Opened(_MANIFEST, io.BytesIO(text), len(text), 0)
        self._tar.addfile(_header(opened), opened.file)
        self._tar.close()
        return manifest


class Archive:
    """An open archive, whose members were found to match its manifest. Their bytes are checked by `verify`."""

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        """Raises BackupError."""
        self._path = path
        self._tar = tar
        self._infos: dict[str, tarfile.TarInfo] = {}
        last = None
        for last in tar:
            _refuse_unsafe(path, last)
            if last.name in self._infos:
                raise BackupError(f"{path} is refused: it has two members named {last.name!r}")
            self._infos[last.name] = last
        if last is None or last.name != _MANIFEST:
            raise BackupError(
                f"{path} is not a whole backup: it does not end with its manifest. Was it cut off?"
            )
        del self._infos[_MANIFEST]
        self.manifest = self._read_manifest(last)
        self._compare()

    def verify(self, on_bytes: OnBytes) -> None:
        """Read everything and compare the hashes. Raises BackupError at the first that differs."""
        for name in self._infos:
            for _ in self._blocks(name, on_bytes):
                pass

    def unpack(self, folder: Path, on_bytes: OnBytes) -> None:
        """Write all members into `folder`, which is created if needed, readable only by its owner, and synced to
        disk."""
        for name in (".", *FOLDERS):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        for name, info in self._infos.items():
            target = folder / name
            for parent in reversed(target.relative_to(folder).parents):
                (folder / parent).mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
                for block in self._blocks(name, on_bytes):
                    file.write(block)
                file.flush()
                os.utime(file.fileno(), (info.mtime, info.mtime))
                os.fsync(file.fileno())
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                sync_folder(path)

    def _blocks(self, name: str, on_bytes: OnBytes) -> Iterator[bytes]:
        file = self._tar.extractfile(self._infos[name])
        assert file is not None, "only plain files were let in"
        reader, block = _Hashing(file, on_bytes), b"?"
        while block:
            with _readable(self._path):
                block = reader.read(_BLOCK)
            yield block
        if reader.digest.hexdigest() != self.manifest.members[name].sha256:
            raise BackupError(
                f"{self._path} is damaged: {name} is not what was archived. Nothing was changed"
            )

    def _read_manifest(self, info: tarfile.TarInfo) -> Manifest:
        if info.size > _MAX_MANIFEST:
            raise BackupError(f"{self._path} is refused: its manifest has {info.size} bytes")
        file = self._tar.extractfile(info)
        assert file is not None, "only plain files were let in"
        try:
            values: dict[str, Any] = json.loads(file.read())
            if values["format"] > FORMAT:
                raise BackupError(
                    f"{self._path} was made by a newer Tunewright ({values['version']}): restore it with that "
                    "version. Nothing was changed"
                )
            if values.pop("sha256") != _digest(values):
                raise ValueError("its hash differs")
            return Manifest.model_validate(values)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise BackupError(
                f"{self._path} is damaged: its manifest cannot be read. Nothing was changed"
            ) from error

    def _compare(self) -> None:
        listed, there = self.manifest.members.keys(), self._infos.keys()
        if listed != there:
            missing, unknown = sorted(listed - there), sorted(there - listed)
            what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not in its manifest"
            raise BackupError(f"{self._path} is damaged: {what}. Nothing was changed")
        for name, member in self.manifest.members.items():
            if self._infos[name].size != member.bytes:
                raise BackupError(f"{self._path} is damaged: {name} has another size. Nothing was changed")
        if DATABASE not in there:
            raise BackupError(f"{self._path} is refused: it has no database")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open the archive at `path`. Raises BackupError and OSError."""
    with ExitStack() as stack:
        with _readable(path):
            archive = Archive(path, stack.enter_context(tarfile.open(path, "r:")))
        yield archive


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BackupError(f"{path} is not a whole backup: {error}. Nothing was changed") from error


def _refuse_unsafe(path: Path, info: tarfile.TarInfo) -> None:
    """Raises BackupError for a member that is not a plain file with a name as in this module's docstring."""
    parts = info.name.split("/")
    depth = {"files": 2, "jobs": 3, "artifacts": 3}
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse() or info.size < 0:
        raise BackupError(f"{path} is refused: {info.name!r} is not a plain file")
    if any(part in ("", ".", "..") for part in parts) or "\0" in info.name:
        raise BackupError(f"{path} is refused: the name {info.name!r} leads out of its folder")
    known = info.name in (DATABASE, _MANIFEST) or (
        parts[0] in depth and len(parts) >= depth[parts[0]] and (parts[0] != "files" or len(parts) == 2)
    )
    if not known:
        raise BackupError(f"{path} is refused: {info.name!r} is not a member of a backup")


class _Hashing:
    """Reads a file and computes the hash of what was read."""

    def __init__(self, file: IO[bytes], on_bytes: OnBytes) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.digest.update(block)
        self._on_bytes(len(block))
        return block


def _header(source: Opened) -> tarfile.TarInfo:
    info = tarfile.TarInfo(source.name)
    info.size, info.mtime, info.mode = source.size, int(source.mtime), 0o600
    return info


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
