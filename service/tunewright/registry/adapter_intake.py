"""Takes an adapter that was trained elsewhere: checks it against its base, and writes it as it is kept.

It is rewritten to peft's form first. What vLLM cannot serve and can be merged is checked as a merge is, and kept with
the fields that a merge reads. These are functions for `apart.call_apart`: the files come from strangers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.errors import InvalidAdapter
from tunewright.registry.adapter_check import (
    CONFIG_FILE,
    check_served,
    lora_modules,
    named_for,
    read_weights,
    write_weights,
)
from tunewright.registry.adapter_config import (
    AdapterConfig,
    check_kind,
    config_fields,
    merged_fields,
    needs_merging,
    read_config,
)
from tunewright.registry.adapter_forms import PREFIX, in_peft_form
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.base_tensors import BaseTensors, Stored
from tunewright.registry.mergeable import check_mergeable
from tunewright.registry.mlx_form import is_mlx
from tunewright.registry.safetensors_file import BadTensors, Tensor, read_finite, read_shapes


@dataclass(frozen=True)
class TakenAdapter:
    """An adapter that was written to a folder, in the form in which it is kept."""

    config: AdapterConfig
    targets: list[str]
    """The last parts of its modules' names, sorted."""
    is_merge_only: bool
    """Whether vLLM cannot serve it, although it can be merged."""


def base_hint(config: bytes) -> str | None:
    """The name of the base where the adapter was trained. Raises InvalidAdapter."""
    fields = read_config(config)
    hint = fields.get("model" if is_mlx(fields) else "base_model_name_or_path")
    return hint if isinstance(hint, str) and hint else None


def check_and_write(
    weights: BinaryIO, config: bytes, base: BaseModules, base_folder: Path, max_rank: int, folder: Path
) -> TakenAdapter:
    """Check an adapter and write it to `folder`: the same weights and config always make the same bytes.

    Raises InvalidAdapter and ExportUnsupported where it cannot be used, naming the field; OSError.
    """
    fields, found = in_peft_form(read_config(config), read_weights(weights), base)
    fields, tensors = _with_trained_embeddings(fields, found, weights, base_folder)
    fields = _without_biases(fields, tensors, base_folder)
    if needs_merging(fields) is None:
        checked = check_served(fields, tensors, base, max_rank)
        checked.write(weights, folder)
        return TakenAdapter(checked.config, checked.targets, is_merge_only=False)
    check_kind(fields, for_merging=True)
    parsed = named_for(config_fields(fields), base)
    kept = parsed.as_peft(lora_modules(tensors)) | merged_fields(fields)
    text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    write_weights(weights, tensors, folder)
    plan = check_mergeable(base_folder, folder)
    return TakenAdapter(
        parsed, sorted({module.rpartition(".")[2] for module in plan.modules}), is_merge_only=True
    )


def _with_trained_embeddings(
    fields: dict[str, Any], tensors: Sequence[Tensor], weights: BinaryIO, base_folder: Path
) -> tuple[dict[str, Any], Sequence[Tensor]]:
    """The config and the tensors with what peft does with embeddings and an output head that are whole in the file and
    that `modules_to_save` does not name: it loads them into the base.

    Those that are the base's own are left out; trained ones are added to `modules_to_save`. Where the base ties them,
    peft loads one for both, which no field can say: InvalidAdapter.
    """
    saved = fields.get("modules_to_save") or []
    named = {tensor.name.removeprefix(PREFIX): tensor for tensor in tensors if ".lora_" not in tensor.name}
    whole = {name for name in named if name.endswith(".weight") and ".base_layer." not in name}
    if not whole or not isinstance(saved, list) or fields.get("ensure_weight_tying"):
        return fields, tensors
    base = BaseTensors(base_folder)
    if base.embedding is None:
        return fields, tensors
    found = {base.embedding: base.tensors[base.embedding]}
    found[base.head] = base.tensors[base.head] if base.head in base.tensors else found[base.embedding]
    declared = tuple(map(str, saved))
    undeclared = {
        name: named[name]
        for name in sorted(found.keys() & whole)
        if not name.removesuffix(".weight").endswith(declared) and named[name].shape == found[name].shape
    }
    own = {t.name for name, t in undeclared.items() if _is_equal(weights, t, found[name])}
    tensors = [tensor for tensor in tensors if tensor.name not in own]
    trained = [name.removesuffix(".weight") for name, tensor in undeclared.items() if tensor.name not in own]
    if not trained:
        return fields, tensors
    if base.is_tied:
        raise InvalidAdapter(
            f"{PREFIX}{trained[0]}.weight is a whole weight that modules_to_save does not name, and the base has "
            "one weight for its embeddings and its output head: merge the adapter where it was trained (peft's "
            "`merge_and_unload`), and serve the result as a base.",
            param="adapter_config.modules_to_save",
            code="adapter_unsupported",
        )
    return {**fields, "modules_to_save": sorted({*saved, *trained})}, tensors


def _is_equal(weights: BinaryIO, tensor: Tensor, of_base: Stored) -> bool:
    """Whether the tensor is that of the base, bit for bit."""
    if tensor.dtype != of_base.tensor.dtype:
        return False
    with of_base.file.open("rb") as file:
        try:
            pairs = zip(read_finite(weights, tensor), read_finite(file, of_base.tensor), strict=True)
            return all(ours == theirs for ours, theirs in pairs)
        except BadTensors:
            return False


def _without_biases(fields: dict[str, Any], tensors: Sequence[Tensor], base_folder: Path) -> dict[str, Any]:
    """The config with `bias` none where there is none to train: then the adapter can be served."""
    trained = any(tensor.name.endswith(".bias") for tensor in tensors)
    if fields.get("bias") not in ("all", "lora_only") or trained:
        return fields
    has_biases = any(name.endswith(".bias") for name in read_shapes(base_folder))
    return fields if has_biases else {**fields, "bias": "none"}
