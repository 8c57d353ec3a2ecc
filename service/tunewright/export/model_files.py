"""The files of a model's folder beside its weights: config, tokenizer, chat template. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunewright.atomic import sync_folder

CHAT_TEMPLATE = "chat_template.jinja"
_TEMPLATES = "additional_chat_templates"
_KEPT = frozenset(
    {
        "generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
        "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model", "tekken.json", CHAT_TEMPLATE,
        "chat_template.json",
    }
)  # fmt: skip
_KEPT_ENDS = (".tiktoken", ".model")
_NEVER = (".py", ".md")


def write_file(path: Path, content: bytes) -> None:
    """Write the file atomically, also against power loss."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def as_json(value: Any) -> bytes:
    """JSON with the keys in their given order."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def model_config(config: dict[str, Any], *, untied: bool) -> dict[str, Any]:
    """The base's `config.json` for bfloat16 weights, with `torch_dtype`, the older name of `dtype`, replaced."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            changed["dtype"] = "bfloat16"
        else:
            changed[key] = value
    changed.setdefault("dtype", "bfloat16")
    if untied:
        changed["tie_word_embeddings"] = False
    return changed


def copy_tokenizer(base: Path, out: Path, chat_template: str | None) -> None:
    """Copy tokenizer, chat templates and `generation_config.json`, but no code and no README.

    `chat_template` replaces all templates of the base.
    """
    for file in sorted(base.iterdir()):
        if not file.is_file() or not _is_kept(file.name):
            continue
        if chat_template is not None and file.name in (CHAT_TEMPLATE, "chat_template.json"):
            continue
        content = file.read_bytes()
        if chat_template is not None and file.name == "tokenizer_config.json":
            content = as_json({k: v for k, v in json.loads(content).items() if k != "chat_template"})
        write_file(out / file.name, content)
    if chat_template is not None:
        write_file(out / CHAT_TEMPLATE, chat_template.encode())
    elif (base / _TEMPLATES).is_dir():
        (out / _TEMPLATES).mkdir(exist_ok=True)
        for file in sorted((base / _TEMPLATES).glob("*.jinja")):
            write_file(out / _TEMPLATES / file.name, file.read_bytes())


def _is_kept(name: str) -> bool:
    if name.endswith(_NEVER):
        return False
    return name in _KEPT or name.startswith("tokenizer") or name.endswith(_KEPT_ENDS)
