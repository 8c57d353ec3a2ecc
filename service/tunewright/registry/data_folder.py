"""The data folder: where everything lies, and how things come to lie there whole.

tunewright.db                the store
files/<id>                   uploads
jobs/<id>/                   job folders
artifacts/<sha256>/          adapters and full models, immutable
engines/<base>/              logs and process records of the engines
run/                         process records, lock
tmp/                         what is not finished; emptied at start
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunewright.atomic import publish_folder, sync_folder

_CONFIG_THAT_MATTERS = (
    "peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "bias", "modules_to_save",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
)  # fmt: skip


class DataFolder:
    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.files = self.path / "files"
        self.jobs = self.path / "jobs"
        self.artifacts = self.path / "artifacts"
        self.engines = self.path / "engines"
        self.run = self.path / "run"
        self.tmp = self.path / "tmp"

    def create(self) -> None:
        """Make the folders, readable by their owner alone. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.files, self.jobs, self.artifacts, self.engines, self.run, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)

    def clear_unfinished(self) -> None:
        """Remove what a crash left half-made. Only at start, before anything writes."""
        for leftover in self.tmp.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def file(self, id: str) -> Path:
        return self.files / id

    def job(self, id: str) -> Path:
        return self.jobs / id

    def artifact(self, sha256: str) -> Path:
        return self.artifacts / sha256

    def engine(self, name: str) -> Path:
        folder = self.engines / quote(name, safe="")
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def publish(self, source: Path, sha256: str) -> Path:
        """Copy a finished folder in under its hash; nothing to do where it lies there already."""
        final = self.artifact(sha256)
        if final.exists():
            return final
        temporary = Path(tempfile.mkdtemp(prefix="artifact-", dir=self.tmp))
        temporary.chmod(0o755)
        for file in sorted(p for p in source.iterdir() if p.is_file()):
            try:
                os.link(file, temporary / file.name)  # immutable on both sides: no second copy of the bytes
            except OSError:
                shutil.copy2(file, temporary / file.name)
        try:
            publish_folder(temporary, final)
        except OSError:
            if not final.exists():
                raise
            shutil.rmtree(temporary, ignore_errors=True)  # somebody else published the same meanwhile
        return final

    def remove_artifact(self, sha256: str) -> None:
        """First out of sight, then gone: nobody meets half of it."""
        doomed = self.tmp / f"removed-{sha256}-{os.getpid()}"
        try:
            os.replace(self.artifact(sha256), doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def keep_file(self, temporary: Path, id: str) -> None:
        """Give an upload, written and synced under `tmp/`, its place."""
        os.replace(temporary, self.file(id))
        sync_folder(self.files)


def adapter_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def adapter_sha256(folder: Path) -> str:
    """Of a PEFT folder: its weights and the part of its config that changes what it computes."""
    config = adapter_config(folder)
    kept = {key: config.get(key) for key in _CONFIG_THAT_MATTERS}
    if isinstance(kept["target_modules"], list):
        kept["target_modules"] = sorted(kept["target_modules"])
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
