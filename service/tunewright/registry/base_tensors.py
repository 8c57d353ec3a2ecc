"""The names and places of the tensors of a base into which an adapter can be merged.

Reads the headers of its files and its config. No torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import ExportUnsupported
from tunewright.registry.safetensors_file import (
    FLOATS,
    BadTensors,
    Tensor,
    read_header,
    read_tensors,
    weight_files,
)

HEAD = "lm_head"
"""The output head of every causal model here that can have its weight tied to the embeddings'."""
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tokens_embed", "tok_embeddings")
"""Last parts of the names of input embeddings in architectures."""
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
"""Modules that are `Conv1D` in transformers: their weight is [in, out], which a square shape does not show."""
_OTHER_KINDS = ("text_config", "vision_config", "audio_config")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys in the config of a mixture of experts."""
_PACKED = re.compile(r"\.(qweight|qzeros|weight_packed|weight_scale|weight_scale_inv|SCB|absmax)$")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file."""

    file: Path
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


class BaseTensors:
    """The tensors of a dense text model in 16 or 32 bits. Reads only headers, however large the base is."""

    def __init__(self, folder: Path) -> None:
        """Raises ExportUnsupported for a base of another kind, and OSError where it cannot be read."""
        self.folder = folder
        self.config = _read_config(folder)
        try:
            self.files = weight_files(folder)
        except (BadTensors, FileNotFoundError) as error:
            raise ExportUnsupported(f"The base cannot be used: {error}.", param="base") from error
        self.tensors: dict[str, Stored] = {}
        for file in self.files:
            for tensor in _read(file):
                if tensor.name in self.tensors:
                    raise ExportUnsupported(f"The base has {tensor.name} in two of its files.", param="base")
                self.tensors[tensor.name] = Stored(file, tensor)
        self._tops = {name.partition(".")[0] for name in self.tensors}
        found = [
            name
            for name in self.tensors
            if name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS and ".layers." not in name
        ]
        self.embedding = found[0] if len(found) == 1 else None
        """The name of the input embeddings' weight, or None where it cannot be determined."""

    @property
    def head(self) -> str:
        """The name of the output head's weight, whether it is in the files or not."""
        return f"{HEAD}.weight"

    @property
    def is_tied(self) -> bool:
        """Whether the output head and the embeddings share a weight.

        Where both are in the files, transformers ties them only if they are equal.
        """
        declared = self.config.get("tie_word_embeddings")
        return self.embedding is not None and (
            declared is True or (declared is None and self.head not in self.tensors)
        )

    def find(self, name: str) -> str | None:
        """The name in the files of a tensor of the model in memory; None where there is no such tensor.

        It is the same, or without the model's prefix where the files lack it.
        """
        if name in self.tensors:
            return name
        first, _, rest = name.partition(".")
        return rest if first not in self._tops and rest in self.tensors else None

    def is_conv1d(self, module: str) -> bool:
        """Whether the weight of `module` is [in, out]."""
        known = self.config.get("model_type") in _CONV1D_MODELS
        return known and module.rpartition(".")[2] in _CONV1D_MODULES


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportUnsupported(f"The base's config.json cannot be read: {error}.", param="base") from error
    if not isinstance(config, dict):
        raise ExportUnsupported("The base's config.json is not a JSON object.", param="base")
    if config.get("quantization_config") or config.get("compression_config"):
        raise _refused(
            "is quantized (quantization_config in its config.json), and merging into packed weights would round the "
            "adapter away; take the base in 16 bits. An adapter trained with QLoRA is merged into that too"
        )
    for name in _OTHER_KINDS:
        if name in config:
            raise _refused(
                f"is multimodal ({name} in its config.json); only text models are merged into here"
            )
    for name in EXPERTS:
        if config.get(name):
            raise _refused(
                f"is a mixture of experts ({name} in its config.json), which is not merged into here"
            )
    return config


def _read(file: Path) -> list[Tensor]:
    with file.open("rb") as opened:
        try:
            header, _ = read_header(opened)
            for name, entry in header.items():
                dtype = entry.get("dtype") if isinstance(entry, dict) else None
                if _PACKED.search(name) or dtype not in FLOATS:
                    raise _refused(
                        f"is quantized or packed: {name} in {file.name} has numbers of type {dtype}; take the base "
                        "in 16 bits"
                    )
                if ".experts." in name:
                    raise _refused(f"is a mixture of experts ({name}), which is not merged into here")
            return read_tensors(opened)
        except BadTensors as error:
            raise ExportUnsupported(
                f"The base's {file.name} cannot be used: {error}.", param="base"
            ) from error


def _refused(why: str) -> ExportUnsupported:
    return ExportUnsupported(f"The base {why}.", param="base")
