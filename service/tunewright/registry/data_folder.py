"""The data folder: where everything lies, and how things come to lie there whole.

tunewright.db                the store
files/<id>                   uploads
jobs/<id>/                   job folders
artifacts/<sha256>/          adapters and full models, immutable
engines/<model>/             logs and process records of the engines
run/                         process records, locks
tmp/                         what is not finished; emptied at start
backups/, replaced-*/, restore-*/    made by upgrades and restores of the database; see backup/
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunewright.atomic import publish_folder, sync_folder

_CONFIG_THAT_MATTERS: dict[str, Any] = {
    "peft_type": None, "r": None, "lora_alpha": None, "target_modules": None, "use_rslora": False, "use_dora": False,
    "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False,
    "layers_to_transform": None, "layers_pattern": None,
}  # fmt: skip
"""Fields of PEFT's LoraConfig, and what PEFT writes where nothing else was asked for."""


_REMOVED = "removed-"


class DataFolder:
    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.files = self.path / "files"
        self.jobs = self.path / "jobs"
        self.artifacts = self.path / "artifacts"
        self.engines = self.path / "engines"
        self.run = self.path / "run"
        self.leases = self.run / "leases"
        self.tmp = self.path / "tmp"

    def create(self) -> None:
        """Make the folders, readable by their owner alone. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.files, self.jobs, self.artifacts, self.engines, self.run, self.leases, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)

    def clear_unfinished(self) -> None:
        """Remove what a crash left half-made. Only at start, before anything writes."""
        for leftover in self.tmp.iterdir():
            _destroy(leftover)

    def file(self, id: str) -> Path:
        return self.files / id

    def job(self, id: str) -> Path:
        return self.jobs / id

    def artifact(self, sha256: str) -> Path:
        return self.artifacts / sha256

    def engine(self, name: str) -> Path:
        folder = self.engines / file_name(name)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def heartbeat(self, process: str) -> Path:
        """What `api`, `scheduler` or `worker` touches while it works."""
        return self.run / f"{process}.heartbeat"

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Hold this from before an artifact or a file appears under `name` until it is listed: it is not removed in
        between, by no process. Many may hold the same; waits while it is being removed."""
        with self._locked(name, fcntl.LOCK_SH):
            yield

    def publish(self, source: Path, sha256: str) -> Path:
        """Copy a finished folder in under its hash; nothing to do where it lies there already.

        Call it and list the artifact while `keeping(sha256)`.
        """
        final = self.artifact(sha256)
        if final.exists():
            return final
        temporary = Path(tempfile.mkdtemp(prefix="artifact-", dir=self.tmp))
        try:
            temporary.chmod(0o755)
            for file in sorted(p for p in source.iterdir() if p.is_file()):
                try:  # immutable on both sides: no second copy of the bytes
                    os.link(file, temporary / file.name)
                except OSError:
                    shutil.copy2(file, temporary / file.name)
            publish_folder(temporary, final)
        except OSError:
            if not final.exists():  # else somebody else published the same meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def remove_artifact(self, sha256: str, is_used: Callable[[], object]) -> bool:
        """Remove it unless `is_used()`; whether it was. Waits for whoever publishes the same at this moment."""
        return self._remove(self.artifact(sha256), is_used)

    def keep_file(self, temporary: Path, id: str) -> None:
        """Give an upload, written and synced under `tmp/`, its place. List it while `keeping(id)`."""
        os.replace(temporary, self.file(id))
        sync_folder(self.files)

    def remove_file(self, id: str, is_used: Callable[[], object]) -> bool:
        """Remove it unless `is_used()`; whether it was."""
        return self._remove(self.file(id), is_used)

    def remove_job(self, id: str) -> bool:
        """Remove the folder of a job that is over; whether there was one."""
        return self._remove(self.job(id), lambda: False)

    def finish_removals(self) -> None:
        """Remove what is out of sight but not gone, where a crash cut its removal off."""
        for doomed in self.tmp.glob(f"{_REMOVED}*"):
            _destroy(doomed)

    def _remove(self, path: Path, is_used: Callable[[], object]) -> bool:
        """First out of sight, then gone: nobody meets half of it."""
        with self._locked(path.name, fcntl.LOCK_EX):
            if not path.exists() or is_used():
                return False
            doomed = self.tmp / f"{_REMOVED}{path.name}-{secrets.token_hex(4)}"
            os.replace(path, doomed)
        _destroy(doomed)
        return True

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        """A lock between processes, which ends with its holder. A few names share each file: one that published for
        long would otherwise hold up all removals, and a file for each name would have to be removed itself."""
        path = self.run / f"keep-{zlib.crc32(name.encode()) % 64}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a child inherited it
        finally:
            os.close(descriptor)


def file_name(name: str) -> str:
    """A model's name as part of a file's: quoted, and by its hash where that is too long for a file system."""
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= 160 else hashlib.sha256(name.encode()).hexdigest()


def _destroy(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def adapter_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def adapter_sha256(folder: Path) -> str:
    """Of a PEFT folder: its weights and the part of its config that changes what it computes.

    A field that is left out, null or empty means the same, and so do 16 and 16.0, and another order of names.
    """
    config = adapter_config(folder)
    kept = {
        key: default if config.get(key) in (None, [], {}) else config[key]
        for key, default in _CONFIG_THAT_MATTERS.items()
    }
    if isinstance(kept["target_modules"], list):
        kept["target_modules"] = sorted(set(kept["target_modules"]))
    for key in ("lora_alpha", "alpha_pattern"):
        kept[key] = json.loads(json.dumps(kept[key]), parse_int=float)
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    _update(digest, folder / "adapter_model.safetensors")
    return digest.hexdigest()


def model_sha256(folder: Path) -> str:
    """Of a model folder: all of its files, by name."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(file.name.encode() + b"\0")
        _update(digest, file)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def folder_size(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
