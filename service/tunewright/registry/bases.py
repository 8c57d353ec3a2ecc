"""Inspects the folder of a base model. No torch, no transformers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.config import Base
from tunewright.registry.safetensors_file import BadTensors, weight_files
from tunewright.rows.control_tokens import of_tokenizer
from tunewright.rows.templates import folder_template, other_templates

_DEFAULT_CONTEXT = 2048
_TOOL_PARSERS = (
    # (model_type begins with, what the template or a token must have, vLLM's parser); the first match counts.
    # Some parsers refuse to start without their token, so a family's name alone does not choose one.
    ("qwen3_next", "<tool_call>", "qwen3_xml"),
    ("", "<tool_call>", "hermes"),
    ("llama4", "<|python_start|>", "llama4_pythonic"),
    ("llama", "<|python_tag|>", "llama3_json"),
    ("mistral", "[TOOL_CALLS]", "mistral"),
    ("mixtral", "[TOOL_CALLS]", "mistral"),
    ("granite", "<|tool_call|>", "granite"),
    ("phi4", "<|tool_call|>", "phi4_mini_json"),
    ("phi3", "<|tool_call|>", "phi4_mini_json"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("gpt_oss", "<|channel|>", "openai"),
)


class BaseUnavailable(Exception):
    """The base cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class BaseInfo:
    """A base whose files are on this machine."""

    name: str
    path: Path
    fingerprint: str
    """sha256 of its config, tokenizer and the layout (names, shapes, sizes) of its weights; or, for a model that this
    service made, of all of its files."""
    context: int
    """Longest sequence in tokens."""
    chat_template: str | None
    tool_call_parser: str | None
    """vLLM's parser for its tool calls, or None where none is known."""
    vocab_size: int | None = None
    """Rows of its embedding; its tokenizer may have more or fewer tokens."""
    hub_id: str | None = None
    """Its id on the hub, where it was downloaded from there."""
    quantization: str | None = None
    """How its weights are packed, from its config: awq, gptq, ..."""
    control_tokens: tuple[str, ...] = ()
    """Those of its tokenizer (`rows.control_tokens`)."""

    @property
    def internal_name(self) -> str:
        """Its name in vLLM."""
        return f"base-{self.fingerprint[:32]}"


def inspect_base(base: Base, fingerprint: str | None = None) -> BaseInfo:
    """Inspect a base, and download it first where its source is a hub id. Raises BaseUnavailable.

    `fingerprint` is given for a model that this service made: the hash of all of its files.
    """
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
        raise BaseUnavailable(f"{folder}/config.json is not a JSON object")
    try:
        weights = weight_files(folder)
    except (BadTensors, OSError) as error:
        raise BaseUnavailable(f"{folder} cannot be used: {error}") from error
    text_config = config.get("text_config") or config
    context = text_config.get("max_position_embeddings") or _DEFAULT_CONTEXT
    if not isinstance(context, int):
        raise BaseUnavailable(f"{folder}/config.json: max_position_embeddings is {context!r}, not a number")
    vocabulary = text_config.get("vocab_size")
    template = folder_template(folder)
    added = _added_tokens(folder)
    model_type = str(config.get("model_type", ""))
    return BaseInfo(
        name=base.name,
        path=folder,
        fingerprint=fingerprint or _fingerprint(folder, weights),
        context=context,
        chat_template=template,
        tool_call_parser=_tool_call_parser([token for token, _ in added], model_type, template),
        vocab_size=vocabulary if isinstance(vocabulary, int) else None,
        hub_id=None if base.path else base.source,
        quantization=_quantization(config),
        control_tokens=of_tokenizer(added, other_templates(folder)),
    )


def _quantization(config: dict[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None


def _added_tokens(folder: Path) -> list[tuple[str, bool]]:
    """The tokens that its tokenizer finds before all others, each with whether it is called special: those of both of
    its files, as transformers reads them."""
    found: dict[str, bool] = {}
    config = _json_object(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    for token in [
        *(_json_object(folder / "tokenizer.json").get("added_tokens") or []),
        *(decoder.values() if isinstance(decoder, dict) else []),
    ]:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            found[token["content"]] = found.get(token["content"], False) or bool(token.get("special"))
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[content] = True
    return list(found.items())


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _tool_call_parser(tokens: list[str], model_type: str, template: str | None) -> str | None:
    if template is None:
        return None  # no chat, no tools
    return next(
        (
            parser
            for start, marker, parser in _TOOL_PARSERS
            if model_type.startswith(start) and (marker in template or marker in tokens)
        ),
        None,
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
    except Exception as error:  # the client raises many types: no network, no such repository, gated, offline
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = first.removeprefix("Got: ")  # as huggingface_hub says that there is no network
        raise BaseUnavailable(
            f"{base.source} is no folder here, and could not be fetched from the hub: {first}. Give a model's folder, "
            "or its name on the hub (org/name)"
        ) from error


def _fingerprint(folder: Path, weights: list[Path]) -> str:
    """The fingerprint of a base. Only headers and sizes of the weights are read, however large they are."""
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
