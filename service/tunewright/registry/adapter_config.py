"""An adapter's `adapter_config.json`: which of PEFT's LoRA options can be served, and the form in which it is kept.

lora/peft_helper.py in vLLM has what it accepts. Its older versions ignore what they do not know (patterns,
initializations that change the base), and then answer wrongly: all of that is refused here, whatever the version.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tunewright.errors import InvalidAdapter, cut, quoted

T = TypeVar("T")

LARGEST_CONFIG = 2**20
"""Most bytes in the file."""
_MERGED: dict[str, str] = {
    "use_dora": "vLLM serves no DoRA",
    "modules_to_save": "vLLM serves no modules beside the LoRA weights",
    "lora_bias": "vLLM serves no LoRA bias",
    "trainable_token_indices": "vLLM serves no trained tokens",
}
"""Fields that must be off to serve the adapter itself, and why. Merged into its base it can be served."""
_OFF: dict[str, tuple[str, str]] = {
    "target_parameters": (
        "adapters on parameters (of experts, say) cannot be checked against the base",
        "adapters on parameters (of experts, say) cannot be checked against the base",
    ),
    "alora_invocation_tokens": (
        "vLLM serves no activated LoRA",
        "an activated LoRA works from a token on, which no weight does",
    ),
    "layer_replication": ("vLLM repeats no layers", "it makes a model with more layers than its base"),
    "use_qalora": ("vLLM serves no QALoRA", "QALoRA adapts pooled inputs of quantized layers"),
    "use_bdlora": ("vLLM serves no block-diagonal LoRA", "block-diagonal LoRA is not merged here"),
    "arrow_config": (
        "vLLM does no Arrow routing",
        "Arrow picks adapters for each token, which no weight does",
    ),
    "kasa_config": ("vLLM serves no KaSA", "KaSA changed the base's own weights"),
    "monteclora_config": ("vLLM serves no Monteclora", "Monteclora samples its weights"),
    "megatron_config": (
        "vLLM serves no adapters on Megatron's layers",
        "adapters on Megatron's layers are spread over devices",
    ),
}
"""Fields that must be off: why vLLM does not serve them, and why they are not merged."""
_MERGE = "merge the adapter into its base (peft's `merge_and_unload`), or train one without it"
_AS_LORA = (
    "convert it where peft can (`peft.save_as_lora(folder, model, rank)`), merge it where it was trained "
    "(`merge_and_unload`) and serve the result as a base, or train one with LoRA"
)
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initializations that leave the base as it is. All others are refused, also unknown ones: tests/unit/
test_initializations.py runs each that peft has, and compares. (vLLM takes LoRA-GA too, which changes the base in
training and leaves no trace of that in the adapter.)"""
_CONVERTED_INITS = ("pissa", "corda", "olora", "lora_ga")
"""Beginnings of the initializations that peft's `save_pretrained` converts
(`LoraModel._convert_state_dict_for_initial_model`)."""
_CONVERT = (
    "convert it with peft: after the initialization, set `init_lora_weights = True` in "
    "`model.peft_config['default']` and `model.save_pretrained('run/initial')`; after the training, "
    "`model.save_pretrained(folder, path_initial_model_for_weight_conversion='run/initial')`"
)
_MERGE_INIT = (
    "merge it into the model that it was trained on (peft's `merge_and_unload`) and serve that as a base, or train one "
    "with another initialization"
)
_PATTERN = re.compile(r"\^?[\w.-]{1,256}")
"""The regular expressions that are accepted, without repetition and groups, which could take exponential time."""
_MOST_PATTERNS = 2000


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that determine what the adapter computes: W x + scaling * B A x, in each of its modules."""

    rank: int
    alpha: float
    dropout: float = 0.0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    targets: tuple[str, ...] | None = None
    """Suffixes of the names of all its modules; None where the file specifies them in another way."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    base_hint: str | None = None
    """The name of the base where the adapter was trained."""

    def rank_of(self, module: str) -> int:
        return _match(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """PEFT's factor for what the adapter adds in `module`."""
        return self._scaling(self.rank_of(module), _match(self.alpha_pattern, module, self.alpha))

    @property
    def scaling(self) -> float:
        """The factor of modules to which no pattern applies."""
        return self._scaling(self.rank, self.alpha)

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def as_peft(self, modules: list[str]) -> dict[str, Any]:
        """The config as PEFT's LoraConfig takes it, for an adapter of these modules.

        It has known fields only: nothing else of the file reaches PEFT or vLLM.
        """
        return {
            "alpha_pattern": self.alpha_pattern,
            "base_model_name_or_path": self.base_hint,
            "bias": "none",
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": self.rank_pattern,
            "target_modules": sorted(self.targets if self.targets is not None else modules),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": self.use_rslora,
        }


def parse_adapter_config(config: dict[str, Any]) -> AdapterConfig:
    """The parsed config. Raises InvalidAdapter, naming the field, where it is faulty or cannot be served."""
    check_kind(config)
    if (only_merged := needs_merging(config)) is not None:
        name, why = only_merged
        raise _refused(name, why, _MERGE)
    return config_fields(config)


def read_config(text: bytes) -> dict[str, Any]:
    """The file's JSON object. Raises InvalidAdapter."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"adapter_config.json is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise InvalidAdapter("adapter_config.json is not a JSON object.")
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidAdapter(
            "adapter_config.json has half of a surrogate pair (\\ud800 to \\udfff), which is no text."
        ) from None
    except RecursionError:
        raise InvalidAdapter("adapter_config.json is nested too deeply.") from None
    return config


def needs_merging(config: dict[str, Any]) -> tuple[str, str] | None:
    """The first field due to which vLLM cannot serve the adapter although it can be merged, and why; else None."""
    for name, why in _MERGED.items():
        if config.get(name):
            return name, f"{_shown(config[name])}: {why}"
    if (config.get("bias") or "none") != "none":
        return "bias", f"{quoted(config['bias'])}: vLLM serves no trained biases"
    return None


def merged_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that only a merge reads, where they are set. Raises InvalidAdapter for faulty values."""
    bias = config.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        raise _faulty("bias", bias, "none, all or lora_only")
    flags = ("use_dora", "lora_bias", "ensure_weight_tying")
    found: dict[str, Any] = {name: True for name in flags if _flag(config, name)}
    found |= {"bias": bias} if bias != "none" else {}
    if config.get("modules_to_save"):
        found["modules_to_save"] = list(_names(config["modules_to_save"], "modules_to_save"))
    tokens = config.get("trainable_token_indices")
    if tokens:
        for indices in tokens.values() if isinstance(tokens, dict) else [tokens]:
            if not isinstance(indices, list) or not all(type(at) is int for at in indices):
                raise _faulty("trainable_token_indices", tokens, "the numbers of tokens")
        found["trainable_token_indices"] = tokens
    return found


def config_fields(config: dict[str, Any]) -> AdapterConfig:
    """The fields of `AdapterConfig`. Raises InvalidAdapter for faulty values."""
    targets = config.get("target_modules")
    parted = any(config.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    parted = parted or config.get("layers_to_transform") == 0
    hint = config.get("base_model_name_or_path")
    return AdapterConfig(
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        dropout=_dropout(config.get("lora_dropout")),
        use_rslora=_flag(config, "use_rslora"),
        fan_in_fan_out=_flag(config, "fan_in_fan_out"),
        targets=None if isinstance(targets, str) or parted else _names(targets),
        rank_pattern={
            key: _rank(v, f"rank_pattern.{key}") for key, v in _pattern(config, "rank_pattern").items()
        },
        alpha_pattern={
            key: _alpha(v, f"alpha_pattern.{key}") for key, v in _pattern(config, "alpha_pattern").items()
        },
        base_hint=hint if isinstance(hint, str) and hint else None,
    )


def check_kind(config: dict[str, Any], *, for_merging: bool = False) -> None:
    """Check that the adapter can be served, or merged. Raises InvalidAdapter, naming the field."""
    kind = config.get("peft_type")
    if kind != "LORA":
        taken = "merged" if for_merging else "served"
        raise _refused("peft_type", f"{quoted(kind)}: only LORA adapters are {taken}", _AS_LORA)
    task = config.get("task_type")
    if task not in ("CAUSAL_LM", None):
        raise _refused(
            "task_type", f"{quoted(task)}, not CAUSAL_LM", "only adapters that generate text are supported"
        )
    for name, (not_served, not_merged) in _OFF.items():
        if config.get(name):
            advice = "train one without it" if for_merging else _MERGE
            raise _refused(
                name, f"{_shown(config[name])}: {not_merged if for_merging else not_served}", advice
            )
    _check_initialization(config.get("init_lora_weights"))


def _check_initialization(init: Any) -> None:
    """Raise InvalidAdapter unless the base is known to be as it was before the training."""
    if init is None or isinstance(init, bool):
        return
    if not isinstance(init, str):
        raise _faulty("init_lora_weights", init, "true, false or the name of an initialization")
    name = init.lower()
    if name in _PLAIN_INITS:
        return
    is_converted = name.startswith(_CONVERTED_INITS)
    is_known = is_converted or name == "loftq"
    changed = "it changed the base's own weights, which are not in the adapter"
    raise _refused(
        "init_lora_weights",
        f"{_shown(init)}: {changed if is_known else 'an initialization that may have changed the base itself'}",
        _CONVERT if is_converted else _MERGE_INIT,
    )


def _refused(name: str, what: str, advice: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"adapter_config.json has {name} {what}; {advice}.",
        param=f"adapter_config.{name}",
        code="adapter_unsupported",
    )


def _faulty(name: str, value: Any, wanted: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"adapter_config.json has {name} {_shown(value)}; it must be {wanted}.",
        param=f"adapter_config.{name}",
    )


def _rank(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value < 2**16:
        raise _faulty(name, value, "a positive whole number")
    return value


def _alpha(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise _faulty(name, value, "a positive, finite number")
    return float(value)


def _dropout(value: Any) -> float:
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise _faulty("lora_dropout", value, "a number from 0 to less than 1")
    return float(value)


def _flag(config: dict[str, Any], name: str) -> bool:
    value = config.get(name)
    if value not in (True, False, None):
        raise _faulty(name, value, "true or false")
    return bool(value)


def _names(value: Any, field: str = "target_modules") -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise _faulty(field, value, "the names of modules")
    return tuple(sorted(set(value)))


def _pattern(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict) or len(value) > _MOST_PATTERNS:
        raise _faulty(name, value, f"an object of at most {_MOST_PATTERNS} names")
    for key in value:
        if not _PATTERN.fullmatch(key):
            raise InvalidAdapter(
                f"adapter_config.json has {quoted(key)} in {name}; keys must be names of modules, or their ends "
                "from a dot on: write the modules' names out.",
                param=f"adapter_config.{name}",
            )
    return value


def _match(pattern: dict[str, T], module: str, otherwise: T) -> T:
    """The value of the first key that is the end of the name, from a dot on; after `^` a key is the whole name.

    For names this is the rule of PEFT (`get_pattern_key`) and of vLLM, where keys are regular expressions. Those can
    take minutes, so they are not taken.
    """
    ends = {module[at:] for at in range(len(module)) if at == 0 or module[at - 1] == "."} | {f"^{module}"}
    found = pattern.keys() & ends
    return next((pattern[key] for key in pattern if key in found), otherwise) if found else otherwise


def _shown(value: Any) -> str:
    return cut(json.dumps(value), 100)
