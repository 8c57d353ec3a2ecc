"""What a base model's folder says of itself, read as text: no torch, no transformers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.config import Base
from tunewright.data.templates import folder_template

_DEFAULT_CONTEXT = 2048
_TOOL_PARSERS = (
    # (model_type begins with, vLLM's tool call parser); the first match counts
    ("qwen3_next", "qwen3_xml"),
    ("qwen3", "hermes"),
    ("qwen2", "hermes"),
    ("llama4", "llama4_pythonic"),
    ("llama", "llama3_json"),
    ("mistral", "mistral"),
    ("mixtral", "mistral"),
    ("granite", "granite"),
    ("phi4", "phi4_mini_json"),
    ("deepseek_v3", "deepseek_v3"),
    ("internlm", "internlm"),
    ("jamba", "jamba"),
    ("glm4_moe", "glm45"),
    ("gemma4", "gemma4"),
    ("olmo3", "olmo3"),
    ("gpt_oss", "openai"),
)


class BaseUnavailable(Exception):
    """The base cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class BaseInfo:
    """A base that is here."""

    name: str
    path: Path
    fingerprint: str
    """sha256 over its config, tokenizer and the layout (names, shapes, sizes) of its weights."""
    context: int
    """Longest sequence in tokens."""
    model_type: str
    chat_template: str | None

    @property
    def internal_name(self) -> str:
        """What vLLM calls it."""
        return f"base-{self.fingerprint[:32]}"

    @property
    def tool_call_parser(self) -> str | None:
        """vLLM's parser for the family, or None where there is none that we know."""
        if self.chat_template and "<tool_call>" in self.chat_template:
            return "hermes"
        return next((parser for start, parser in _TOOL_PARSERS if self.model_type.startswith(start)), None)


def inspect_base(base: Base) -> BaseInfo:
    """Look at a base, after downloading it where its source is a hub id. Raises BaseUnavailable."""
    folder = base.path or _download(base)
    try:
        config: Any = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise BaseUnavailable(f"{folder} is no model folder: it has no config.json") from None
    except OSError as error:
        raise BaseUnavailable(f"{folder}/config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BaseUnavailable(f"{folder}/config.json is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BaseUnavailable(f"{folder}/config.json is no JSON object")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BaseUnavailable(f"{folder} has no *.safetensors weights (pickled ones are never loaded)")
    text_config = config.get("text_config") or config
    context = text_config.get("max_position_embeddings") or _DEFAULT_CONTEXT
    if not isinstance(context, int):
        raise BaseUnavailable(f"{folder}/config.json: max_position_embeddings is {context!r}, not a number")
    return BaseInfo(
        name=base.name,
        path=folder,
        fingerprint=_fingerprint(folder, weights),
        context=context,
        model_type=str(config.get("model_type", "")),
        chat_template=folder_template(folder),
    )


def _download(base: Base) -> Path:
    if base.source.startswith((".", "/", "~")):
        raise BaseUnavailable(f"there is no folder {base.source}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                base.source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
            )
        )
    except Exception as error:  # the hub's client raises many kinds: no network, no such repo, gated, offline
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseUnavailable(
            f"{base.source} is no folder here, and could not be fetched from the hub: {first}"
        ) from error


def _fingerprint(folder: Path, weights: list[Path]) -> str:
    """Cheap even for hundreds of gigabytes: of the weights only the headers and sizes are read."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    for path in weights:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(path.name.encode() + b"\0" + file.read(min(length, 100 * 2**20)))
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()
