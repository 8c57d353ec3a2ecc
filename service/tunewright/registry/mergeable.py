"""Checks whether an adapter can be merged into its base, and plans the change of each tensor. No torch.

The merged model must compute what peft computes with the unmerged adapter. The plan is made from the names and shapes
of the tensors and the scaling of each module. Only headers and configs are read.

Where the output head of a base is tied to its embeddings, peft adapts only the one that the adapter changes: its
forward pass does not change the other (its `merge_and_unload` writes into the shared weight, and so changes both). Such
a base is untied: the merged model has both tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.errors import ExportUnsupported, InvalidAdapter
from tunewright.registry.adapter_check import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraPair,
    check_complete,
    check_rank,
    lora_pairs,
    pickled,
    read_weights,
)
from tunewright.registry.adapter_config import (
    AdapterConfig,
    check_kind,
    config_fields,
    needs_merging,
    read_config,
)
from tunewright.registry.adapter_parts import AdapterParts, covered, token_indices
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.base_tensors import BaseTensors, Stored

_LARGEST_RANK = 2**16


@dataclass(frozen=True)
class LowRank:
    """W becomes W + scaling * (B A), with DoRA magnitude * (W + scaling * (B A)) / its norm along the inputs.

    `a` is [rank, in] and `b` [out, rank], for an embedding [rank, vocabulary] and [width, rank]. W is [out, in] for
    `linear`, [in, out] for `conv1d`, and [vocabulary, width] for `embedding`.
    """

    module: str
    """Its name in the model in memory."""
    a: Stored
    b: Stored
    scaling: float
    kind: Literal["linear", "conv1d", "embedding"]
    magnitude: Stored | None = None


@dataclass(frozen=True)
class AddedBias:
    """b becomes b + scaling * `bias`."""

    bias: Stored
    scaling: float


@dataclass(frozen=True)
class Rows:
    """The rows `indices` become those of `values`, [tokens, width]."""

    indices: tuple[int, ...]
    values: Stored


Change = LowRank | AddedBias | Rows


@dataclass(frozen=True)
class Output:
    """A tensor of the merged model: from the base or the adapter, with a change or without."""

    name: str
    source: Stored
    change: Change | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape


@dataclass(frozen=True)
class MergePlan:
    """All steps of merging an adapter."""

    base: BaseTensors
    adapter: Path
    config: AdapterConfig
    outputs: tuple[Output, ...]
    """Sorted by name."""
    modules: tuple[str, ...]
    """The modules with LoRA weights, sorted."""
    untied: bool
    """Whether the base's output head is tied to its embeddings, and that of the merged model is not."""
    same: tuple[tuple[Stored, Stored, bool], ...] = ()
    """Pairs of adapter tensors that must be equal, since the adapter keeps them tied and one of them is left out.

    The third value is whether the second tensor is transposed.
    """


def merge_only(config: dict[str, Any]) -> str | None:
    """Why vLLM cannot serve an adapter with this `adapter_config.json` although it can be merged; else None.

    None also for adapters that can be neither served nor merged.
    """
    found = needs_merging(config)
    return f"{found[0]} {found[1]}" if found is not None else None


def check_mergeable(base: Path, adapter: Path) -> MergePlan:
    """The plan of merging the PEFT folder `adapter` into the model folder `base`.

    Raises ExportUnsupported, naming the field, where one of them cannot be merged; InvalidAdapter where the adapter is
    faulty, incomplete, or of another base; OSError.
    """
    planner = _Planner(BaseTensors(base), adapter)
    return planner.plan()


class _Planner:
    def __init__(self, base: BaseTensors, adapter: Path) -> None:
        self.base = base
        self.adapter = adapter
        self.raw = read_config((adapter / CONFIG_FILE).read_bytes())
        try:
            check_kind(self.raw, for_merging=True)
        except InvalidAdapter as error:
            raise ExportUnsupported(error.message, param=error.param) from error
        self.config = config_fields(self.raw)
        self.file = adapter / WEIGHTS_FILE
        if not self.file.is_file():
            if (adapter / "adapter_model.bin").exists():
                raise pickled("The adapter has adapter_model.bin only")
            raise InvalidAdapter(f"The adapter has no {WEIGHTS_FILE}.")
        with self.file.open("rb") as weights:
            self.parts = AdapterParts(read_weights(weights), base)
        self.sources = dict(base.tensors)
        self.changes: dict[str, Change] = {}
        self.replaced: set[str] = set()
        self.shared = base.tensors[base.embedding] if base.embedding is not None else None
        """The weight that the embeddings and the output head of a tied base share."""
        self.same: list[tuple[Stored, Stored, bool]] = []
        self.stays_tied = bool(self.raw.get("ensure_weight_tying")) and base.is_tied

    def plan(self) -> MergePlan:
        modules_of = BaseModules("the base", self.base.folder)
        try:
            pairs = lora_pairs(self.parts.lora, modules_of)
        except InvalidAdapter as error:
            if error.code == "adapter_unsupported":
                raise ExportUnsupported(error.message, param=error.param) from error
            raise
        modules = sorted(pair.module for pair in pairs)
        check_complete(modules, self.config, modules_of)
        self._replace_whole()
        for pair in pairs:
            check_rank(pair, self.config, _LARGEST_RANK)
            self._change(f"{pair.module}.weight", self._low_rank(pair))
        self._check_leftover(set(modules))
        for module, bias in self.parts.biases.items():
            self._add_bias(module, Stored(self.file, bias))
        self._replace_rows()
        untied = self._untie()
        outputs = (Output(name, self.sources[name], self.changes.get(name)) for name in sorted(self.sources))
        return MergePlan(
            self.base, self.adapter, self.config, tuple(outputs), tuple(modules), untied, tuple(self.same)
        )

    def _home(self, name: str, of: str) -> str:
        """The name of the tensor in the base; the output head's own name where it is tied and in no file."""
        found = self.base.find(name)
        if found is not None:
            return found
        if name == self.base.head and self.base.is_tied:
            return name
        raise InvalidAdapter(
            f"The base has no tensor {name}, and the adapter has {of} for it: it was trained on another base.",
            code="adapter_does_not_fit",
        )

    def _source(self, home: str) -> Stored:
        tied = self.base.embedding
        return self.sources[home] if home in self.sources or tied is None else self.sources[tied]

    def _fits(self, home: str, shape: tuple[int, ...], what: str) -> None:
        there = self._source(home).shape
        if there != shape:
            embeds = home in (self.base.head, self.base.embedding)
            raise InvalidAdapter(
                f"{what} is for a tensor of shape {list(shape)}, and the base's {home} has {list(there)}: the adapter "
                + ("was trained with another vocabulary." if embeds else "was trained on another base."),
                code="adapter_does_not_fit",
            )

    def _low_rank(self, pair: LoraPair) -> LowRank:
        home = self._home(f"{pair.module}.weight", "LoRA weights")
        kind: Literal["linear", "conv1d", "embedding"] = "linear"
        shape = pair.adapts
        if pair.is_embedding:
            kind = "embedding"
        elif self.base.is_conv1d(pair.module):
            kind, shape = "conv1d", (shape[1], shape[0])
        self._fits(home, shape, f"{pair.module}'s LoRA")
        magnitude = self.parts.magnitudes.get(pair.module)
        if (magnitude is not None) != bool(self.raw.get("use_dora")):
            raise InvalidAdapter(
                f"{pair.module} has {'a' if magnitude else 'no'} lora_magnitude_vector, and adapter_config.json has "
                f"use_dora {self.raw.get('use_dora')}: the two files are not of the same adapter.",
                param="adapter_config.use_dora",
            )
        if magnitude is not None and magnitude.shape != (pair.b.shape[0],):
            raise InvalidAdapter(
                f"{magnitude.name} has shape {list(magnitude.shape)}, not [{pair.b.shape[0]}]."
            )
        return LowRank(
            pair.module,
            Stored(self.file, pair.a),
            Stored(self.file, pair.b),
            self.config.scaling_of(pair.module),
            kind,
            Stored(self.file, magnitude) if magnitude is not None else None,
        )

    def _change(self, name: str, change: Change) -> None:
        home = self._home(name, "weights")
        if home in self.changes or (home in self.replaced and not isinstance(change, AddedBias)):
            raise ExportUnsupported(
                f"The adapter changes {name} in two ways at once (LoRA weights, modules_to_save, "
                "trainable_token_indices), which is not merged here."
            )
        self.changes[home] = change

    def _replace_whole(self) -> None:
        """Replace tensors of the base by whole tensors of the adapter, as peft does when it loads them.

        These are those of modules_to_save, biases, and the base's own embeddings, which peft also saves where they are
        adapted.
        """
        saved = self.raw.get("modules_to_save") or []
        for name, tensor in sorted(
            self.parts.whole.items(), key=lambda item: item[0] not in self.parts.untrained
        ):
            if not self._is_declared(name, saved):
                raise ExportUnsupported(
                    f"{tensor.name} is a whole tensor that adapter_config.json does not name in modules_to_save (a "
                    "resized vocabulary, or a layer trained beside peft), which is not merged here.",
                    param="adapter_config.modules_to_save",
                )
            home = self._home(name, "a whole tensor")
            self._fits(home, tensor.shape, tensor.name)
            stored = Stored(self.file, tensor)
            if name not in self.parts.untrained:
                self.replaced.add(home)
                self.sources[home] = stored
            elif self.base.is_tied and home in (self.base.head, self.base.embedding):
                self._share(stored)
            else:
                self.sources[home] = stored
        self._check_saved(saved)

    def _is_declared(self, name: str, saved: list[str]) -> bool:
        if name in self.parts.untrained or covered(name, saved):
            return True
        if self.stays_tied and name == self.base.head and self.base.embedding is not None:
            return covered(self.base.embedding, saved)  # peft saves both then, and names one
        return name.endswith(".bias") and self.raw.get("bias", "none") != "none"

    def _share(self, stored: Stored) -> None:
        """Replace the shared weight of embeddings and output head, into which peft loads the tensor."""
        self.shared = stored
        for name in (self.base.head, self.base.embedding):
            if name in self.sources:
                self.sources[name] = stored

    def _check_saved(self, saved: list[str]) -> None:
        names = [name for name in self.base.tensors if name.endswith(".weight") and covered(name, saved)]
        missing = [name for name in names if name not in self.replaced]
        useless = [part for part in saved if not any(covered(name, [part]) for name in self.parts.whole)]
        if missing or useless:
            raise InvalidAdapter(
                f"adapter_config.json has modules_to_save {saved}, and {WEIGHTS_FILE} has no "
                f"{(missing or useless)[0]}: the adapter is incomplete; save it again.",
                param="adapter_config.modules_to_save",
            )

    def _check_leftover(self, modules: set[str]) -> None:
        if alone := (self.parts.magnitudes.keys() | self.parts.biases.keys()) - modules:
            raise InvalidAdapter(
                f"{min(alone)} has no LoRA weights, but other parts of them: it is incomplete."
            )

    def _add_bias(self, module: str, bias: Stored) -> None:
        if not self.raw.get("lora_bias"):
            raise InvalidAdapter(
                f"{bias.tensor.name} is in the adapter, and adapter_config.json has lora_bias off: the two files are "
                "not of the same adapter.",
                param="adapter_config.lora_bias",
            )
        home = self.base.find(f"{module}.bias")
        if home is None:
            raise ExportUnsupported(
                f"adapter_config.json has lora_bias, and the base's {module} has no bias to add it to.",
                param="adapter_config.lora_bias",
            )
        if self.raw.get("use_dora"):
            raise ExportUnsupported(
                "adapter_config.json has lora_bias and use_dora, which peft does not combine.",
                param="adapter_config.lora_bias",
            )
        self._fits(home, bias.shape, bias.tensor.name)
        self._change(f"{module}.bias", AddedBias(bias, self.config.scaling_of(module)))

    def _replace_rows(self) -> None:
        wanted = token_indices(self.raw.get("trainable_token_indices"), list(self.parts.tokens), self.base)
        for module, indices in wanted.items():
            values = Stored(self.file, self.parts.tokens[module])
            shape = self._source(self._home(f"{module}.weight", "trained tokens")).shape
            vocabulary, width = shape if len(shape) == 2 else (0, 0)
            if values.shape != (len(indices), width) or any(not 0 <= at < vocabulary for at in indices):
                raise InvalidAdapter(
                    f"{module} has trained tokens {list(values.shape)} for {len(indices)} trainable_token_indices, in "
                    f"a weight of shape {list(shape)}: the two files are not of the same adapter.",
                    param="adapter_config.trainable_token_indices",
                )
            self._change(f"{module}.weight", Rows(indices, values))

    def _untie(self) -> bool:
        """Add an output head of its own where a tied base must be untied. Returns whether it must."""
        base, embedding = self.base, self.base.embedding
        touched = set(self._touched())
        if not base.is_tied or embedding is None or not touched:
            return False
        change = self.changes.get(embedding)
        if isinstance(change, Rows) and base.head not in touched:
            self._copy(embedding)  # peft ties trained tokens where the weights are tied
            return False
        if self.stays_tied and (base.head in touched or embedding.endswith("embed_tokens.weight")):
            # peft recognizes embeddings by that name only; with another, the head is not adapted.
            self._check_same(embedding, touched)
            self._copy(embedding)
            return False
        if any(isinstance(self.changes.get(name), Rows) for name in touched) and not all(
            isinstance(self.changes.get(name), Rows) for name in touched
        ):
            raise ExportUnsupported(
                "adapter_config.json has trainable_token_indices, and the tied embeddings and output head are changed "
                "in other ways too, which is not merged here.",
                param="adapter_config.trainable_token_indices",
            )
        if self.shared is not None:
            self.sources.setdefault(base.head, self.shared)
        return True

    def _touched(self) -> Iterator[str]:
        for name in (self.base.head, self.base.embedding):
            if name is not None and (name in self.changes or name in self.replaced):
                yield name

    def _copy(self, embedding: str) -> None:
        """Make the head equal to the embeddings; it is left out where it is in no file."""
        head = self.base.head
        self.changes.pop(head, None)
        if head not in self.base.tensors:
            self.sources.pop(head, None)
            return
        self.sources[head] = self.sources[embedding]
        if (change := self.changes.get(embedding)) is not None:
            self.changes[head] = change

    def _check_same(self, embedding: str, touched: set[str]) -> None:
        """Check that embeddings and head, which are both in the adapter with ensure_weight_tying, are adapted alike."""
        head = self.base.head
        ours, theirs = self.changes.get(embedding), self.changes.get(head)
        if isinstance(ours, LowRank) and isinstance(theirs, LowRank) and ours.magnitude is None:
            self.same += [(ours.a, theirs.b, True), (ours.b, theirs.a, True)]
        elif ours is None and theirs is None and {head, embedding} == touched:
            self.same.append((self.sources[embedding], self.sources[head], False))
        else:
            raise ExportUnsupported(
                "adapter_config.json has ensure_weight_tying, and the embeddings and the output head are not adapted "
                "alike (with DoRA they cannot be): that is not merged here.",
                param="adapter_config.ensure_weight_tying",
            )
