"""The content of an artifact's folder: its files, its hash and its size.

An artifact is an adapter (a PEFT folder) or a whole model (a folder that transformers loads).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tunewright.registry.adapter_check import CONFIG_FILE, WEIGHTS_FILE

_CONFIG_THAT_MATTERS: dict[str, Any] = {
    "peft_type": None, "r": None, "lora_alpha": None, "target_modules": None, "use_rslora": False, "use_dora": False,
    "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False,
    "layers_to_transform": None, "layers_pattern": None,
}  # fmt: skip
"""Fields of PEFT's LoraConfig that change what an adapter computes, with their defaults."""
_CONFIG_OF_SOME = ("lora_bias", "trainable_token_indices", "ensure_weight_tying")
"""Further ones, which are hashed only where they are set: so the hashes of adapters without them stay as they were."""


def artifact_files(folder: Path) -> list[Path]:
    """The files that belong to the artifact in `folder`, by name: an adapter's two, or all of a whole model's.

    Trainers write other files beside an adapter, which are not part of it. A model's folder may also have an
    `adapter_config.json`; its `config.json` distinguishes it from an adapter.
    """
    if _is_adapter(folder):
        return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    return sorted(path for path in folder.iterdir() if path.is_file())


def artifact_sha256(folder: Path) -> str:
    """The hash that names the artifact in `folder`. Raises OSError, and ValueError where a config is not JSON."""
    return adapter_sha256(folder) if _is_adapter(folder) else model_sha256(folder)


def adapter_sha256(folder: Path) -> str:
    """The hash of an adapter: its weights and the part of its config that changes what it computes.

    A missing, null or empty field has its default; 16 and 16.0 are the same; the order of names does not matter.
    """
    config = adapter_config(folder)
    kept = {
        key: default if config.get(key) in (None, [], {}) else config[key]
        for key, default in _CONFIG_THAT_MATTERS.items()
    }
    kept |= {key: config[key] for key in _CONFIG_OF_SOME if config.get(key)}
    if isinstance(kept["target_modules"], list):
        kept["target_modules"] = sorted(set(kept["target_modules"]))
    for key in ("lora_alpha", "alpha_pattern"):
        kept[key] = json.loads(json.dumps(kept[key]), parse_int=float)
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    _update(digest, folder / WEIGHTS_FILE)
    return digest.hexdigest()


def model_sha256(folder: Path) -> str:
    """The hash of a whole model: the names and bytes of all files directly in `folder`."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0")
        _update(digest, file)
    return digest.hexdigest()


def adapter_config(folder: Path) -> dict[str, Any]:
    """The fields of a PEFT folder's `adapter_config.json`. Raises OSError, and ValueError where it is not JSON."""
    return dict(json.loads((folder / CONFIG_FILE).read_text()))


def folder_size(folder: Path) -> int:
    """Total bytes of the files in a folder and its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
