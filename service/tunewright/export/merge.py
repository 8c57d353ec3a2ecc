"""Merges an adapter into its base: a model folder in bfloat16 that transformers and vLLM load.

Streams from the files of the base into the new ones: the headers are written from the plan, then the bytes of each
tensor. Memory: the largest adapted tensor and its change in float32, and the adapter. `arithmetic` computes the
numbers; `registry.mergeable` decides what is merged and what is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tunewright.atomic import sync_folder, write_atomically
from tunewright.errors import ExportUnsupported
from tunewright.export.arithmetic import blocks, read
from tunewright.export.model_files import as_json, copy_tokenizer, model_config, write_file
from tunewright.export.shards import SHARD_BYTES, shard_names, split
from tunewright.registry.adapter_check import CONFIG_FILE, WEIGHTS_FILE
from tunewright.registry.mergeable import MergePlan, Output, check_mergeable
from tunewright.registry.safetensors_file import INDEX, header_of

_FORMAT = 1
"""Increased whenever the same inputs result in other files, so that the shards of an older version are not reused."""
_WIDTH = 2
"""Bytes of a bfloat16 number."""


@dataclass(frozen=True)
class Progress:
    """How much is done, and of how much. Shards that an earlier call left count as done from the start."""

    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int
    shards: int
    all_shards: int


@dataclass(frozen=True)
class Merged:
    """The result of merging."""

    shards: int
    kept: int
    """Shards that an earlier call had completed."""
    tensors: int
    bytes: int
    """Size of the tensors."""
    modules: int
    """Modules with LoRA weights."""
    changed: int
    """Tensors that differ from the base's: changed by LoRA weights or biases, or trained whole."""
    untied: bool
    """Whether the base's output head is tied to its embeddings, and this model's is not."""


@dataclass(frozen=True)
class _Shard:
    name: str
    outputs: tuple[Output, ...]

    @property
    def header(self) -> bytes:
        return header_of((o.name, "BF16", o.shape, size_of(o)) for o in self.outputs)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(map(size_of, self.outputs))


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    chat_template: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Merged:
    """Merge the PEFT folder `adapter` into the model folder `base`, and write the model folder `out`.

    Shards have at most `shard_bytes` bytes of tensors, or one tensor. `chat_template` replaces that of the base. The
    same inputs result in the same bytes. `out` may exist from an earlier call, also one that was killed: with the same
    inputs its shards are kept, otherwise it is removed. `plan_file(out)`, which stays beside `out`, records the inputs.

    `on_progress` is called after each tensor. Raises as `check_mergeable`; FileExistsError where `out` is not empty and
    not from an earlier call; OSError.
    """
    plan = check_mergeable(base, adapter)
    _check_same(plan)
    shards = _shards(plan.outputs, shard_bytes)
    _begin(out, _fingerprint(plan, shard_bytes, chat_template))
    kept = {shard.name for shard in shards if _is_whole(out, shard)}
    progress = _Tracker(shards, kept, on_progress)
    for shard in shards:
        if shard.name not in kept:
            _write_shard(out, shard, progress)
    if len(shards) > 1:
        write_file(out / INDEX, _index(shards))
    copy_tokenizer(base, out, chat_template)
    write_file(out / "config.json", as_json(model_config(plan.base.config, untied=plan.untied)))
    weights = adapter / WEIGHTS_FILE
    return Merged(
        shards=len(shards),
        kept=len(kept),
        tensors=len(plan.outputs),
        bytes=sum(shard.size for shard in shards),
        modules=len(plan.modules),
        changed=sum(o.change is not None or o.source.file == weights for o in plan.outputs),
        untied=plan.untied,
    )


def plan_file(out: Path) -> Path:
    """The file beside `out` that records what is merged there."""
    return out.with_name(f".{out.name}.plan.json")


def size_of(output: Output) -> int:
    """Bytes in the merged model."""
    return math.prod(output.shape) * _WIDTH


def _shards(outputs: tuple[Output, ...], shard_bytes: int) -> list[_Shard]:
    groups = split(outputs, size_of, shard_bytes)
    names = shard_names(len(groups))
    return [_Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _begin(out: Path, fingerprint: str) -> None:
    """Remove from `out` what belongs to other inputs. Incomplete files have temporary names, which are overwritten."""
    plan = plan_file(out)
    try:
        before = json.loads(plan.read_text(encoding="utf-8"))["inputs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        before = None
    if before is None and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty, and no merge is recorded for it")
    if before != fingerprint:
        shutil.rmtree(out, ignore_errors=True)  # first: the new plan must never exist beside the old shards
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plan, json.dumps({"inputs": fingerprint}))
    out.mkdir(exist_ok=True)
    sync_folder(out.parent)


def _fingerprint(plan: MergePlan, shard_bytes: int, chat_template: str | None) -> str:
    """A hash that identifies the inputs: the bytes of the adapter; the headers, sizes and times of the base's files,
    which saves reading them all; and the version of torch, since versions may multiply differently."""
    digest = hashlib.sha256(f"{_FORMAT} {torch.__version__} {shard_bytes} {chat_template!r}".encode())
    for file in (plan.base.folder / "config.json", plan.adapter / CONFIG_FILE, plan.adapter / WEIGHTS_FILE):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    for file in plan.base.files:
        stat = file.stat()
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = hashlib.sha256(opened.read(length)).hexdigest()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns} {header}".encode())
    return digest.hexdigest()


def _is_whole(out: Path, shard: _Shard) -> bool:
    """Whether the shard is complete. A file of its name is; the size is checked nevertheless."""
    path = out / shard.name
    return path.is_file() and path.stat().st_size == len(shard.header) + shard.size


def _write_shard(out: Path, shard: _Shard, progress: _Tracker) -> None:
    temporary = out / f".{shard.name}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(shard.header)
            for output in shard.outputs:
                for block in blocks(output):
                    file.write(block)
                progress.tensor(output)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out / shard.name)
        sync_folder(out)
    finally:
        temporary.unlink(missing_ok=True)
    progress.shard()


def _index(shards: list[_Shard]) -> bytes:
    homes = {output.name: shard.name for shard in shards for output in shard.outputs}
    size = sum(shard.size for shard in shards)
    metadata = {"total_parameters": size // _WIDTH, "total_size": size}
    return as_json({"metadata": metadata, "weight_map": homes})


def _check_same(plan: MergePlan) -> None:
    for one, other, transposed in plan.same:
        first, second = read(one), read(other)
        if not torch.equal(first, second.T if transposed else second):
            raise ExportUnsupported(
                f"adapter_config.json has ensure_weight_tying, and {one.tensor.name} and {other.tensor.name} differ: "
                "which of them counts depends on the order in which peft loads them.",
                param="adapter_config.ensure_weight_tying",
            )


class _Tracker:
    def __init__(self, shards: list[_Shard], kept: set[str], on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        done = [shard for shard in shards if shard.name in kept]
        self._all = (
            sum(len(shard.outputs) for shard in shards),
            sum(shard.size for shard in shards),
            len(shards),
        )
        self._tensors = sum(len(shard.outputs) for shard in done)
        self._bytes = sum(shard.size for shard in done)
        self._shards = len(done)
        self._notify()

    def tensor(self, output: Output) -> None:
        self._tensors += 1
        self._bytes += size_of(output)
        self._notify()

    def shard(self) -> None:
        self._shards += 1
        self._notify()

    def _notify(self) -> None:
        self._on_progress(
            Progress(self._tensors, self._all[0], self._bytes, self._all[1], self._shards, self._all[2])
        )
