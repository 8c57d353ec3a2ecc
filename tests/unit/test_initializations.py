"""Adapters of every initialization that peft has: what is taken computes what was trained; what changed the base is
refused, and taken after peft's own conversion."""

from __future__ import annotations

import inspect
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import (  # noqa: E402
    EvaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.tuners.lora.config import CordaConfig, LoraGAConfig  # noqa: E402
from peft.tuners.lora.corda import preprocess_corda  # noqa: E402
from peft.tuners.lora.layer import LoraLayer  # noqa: E402
from peft.tuners.lora.loraga import preprocess_loraga  # noqa: E402

from models import VOCABULARY, llama, load, load_adapted, logits, save_model  # noqa: E402
from tunewright.errors import InvalidAdapter  # noqa: E402
from tunewright.registry import adapter_config  # noqa: E402
from tunewright.registry.adapter_check import check_adapter  # noqa: E402
from tunewright.registry.base_modules import BaseModules  # noqa: E402

TOKENS = torch.arange(VOCABULARY)[None, :64]
NAMES = [
    True, False, "gaussian", "eva", "orthogonal", "mica", "pissa", "pissa_niter_4", "olora", "corda", "lora_ga",
]  # fmt: skip
NEEDS_A_GPU = {"loftq"}
"""It quantizes the base, on a GPU only; that it is refused is tested without it."""
CONVERTED = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama(), tmp_path_factory.mktemp("base") / "base", dtype=torch.float32)


def initialized(base: Path, name: str | bool) -> PeftModel:
    """As peft's documentation tells to begin with each of them."""
    torch.manual_seed(0)
    model = load(base)
    settings: dict[str, Any] = {
        "eva": {"eva_config": EvaConfig(rho=1.0)},
        "corda": {"corda_config": CordaConfig()},
        "lora_ga": {"lora_ga_config": LoraGAConfig()},
    }.get(str(name), {})
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, init_lora_weights=name, **settings
    )
    if name == "corda":
        preprocess_corda(model, config, run_model=lambda: model(TOKENS))
    if name == "lora_ga":
        preprocess_loraga(model, config, lambda: model(TOKENS, labels=TOKENS).loss.backward())
    adapted = get_peft_model(model, config)
    if name == "eva":
        initialize_lora_eva_weights(adapted, [{"input_ids": TOKENS}] * 4)
    assert isinstance(adapted, PeftModel)
    return adapted


def trained(adapted: PeftModel) -> torch.Tensor:
    """Its logits after its parameters have changed."""
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return logits(adapted.eval())


def registered(base: Path, saved: Path, into: Path) -> Path:
    into.mkdir()
    weights = io.BytesIO((saved / "adapter_model.safetensors").read_bytes())
    checked = check_adapter(
        (saved / "adapter_config.json").read_bytes(), weights, BaseModules("tiny", base), 16
    )
    checked.write(weights, into)
    return into


@pytest.mark.parametrize("name", NAMES)
def test_an_initialization_is_served_as_it_was_trained_or_refused(
    base: Path, tmp_path: Path, name: str | bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = initialized(base, name)
        wanted = trained(adapted)
        adapted.save_pretrained(tmp_path / "saved")
    if not changes_the_base(base, adapted):
        folder = registered(base, tmp_path / "saved", tmp_path / "registered")
        torch.testing.assert_close(logits(load_adapted(base, folder)), wanted, atol=1e-4, rtol=1e-4)
        return
    with pytest.raises(InvalidAdapter) as caught:
        registered(base, tmp_path / "saved", tmp_path / "registered")
    assert (caught.value.code, caught.value.param) == (
        "adapter_unsupported",
        "adapter_config.init_lora_weights",
    )
    assert "changed the base's own weights" in caught.value.message
    assert "path_initial_model_for_weight_conversion" in caught.value.message


def changes_the_base(base: Path, adapted: PeftModel) -> bool:
    now = {name: value for name, value in adapted.named_parameters() if ".base_layer." in name}
    was = dict(load(base).named_parameters())
    pairs = (
        (was[name.replace("base_model.model.", "").replace(".base_layer.", ".")], now[name]) for name in now
    )
    return not all(torch.equal(before, after) for before, after in pairs)


@pytest.mark.parametrize("name", CONVERTED)
def test_after_pefts_conversion_it_is_taken(base: Path, tmp_path: Path, name: str) -> None:
    """As the message of the refusal says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = initialized(base, name)
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "initial")
        wanted = trained(adapted)
        adapted.save_pretrained(
            tmp_path / "saved", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    folder = registered(base, tmp_path / "saved", tmp_path / "registered")
    torch.testing.assert_close(logits(load_adapted(base, folder)), wanted, atol=1e-3, rtol=1e-3)


def test_every_initialization_of_peft_is_tried() -> None:
    """Those that its config names, and those that its layers know beside them."""
    named = set()
    for option in get_args(LoraConfig.__dataclass_fields__["init_lora_weights"].type):
        named |= set(get_args(option))
    methods: list[Callable[..., Any]] = [LoraLayer.update_layer, LoraLayer.reset_lora_parameters]
    for method in methods:
        for line in inspect.getsource(method).splitlines():
            if "init_lora_weights" in line and ("==" in line or "startswith" in line):
                named |= set(re.findall(r'"(\w+)"', line))
    assert {name.partition("_niter_")[0] for name in named} <= {str(name) for name in NAMES} | NEEDS_A_GPU
    assert {"lora_ga", "pissa", "gaussian", "eva"} <= {name.partition("_niter_")[0] for name in named}


@pytest.mark.parametrize("init", ["loftq", "LoRA_GA", "unheard_of", "pissa_niter_", 1, ["pissa"], {}])
def test_what_is_not_known_to_leave_the_base_is_refused(base: Path, tmp_path: Path, init: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialized(base, True).save_pretrained(tmp_path / "saved")
    config = (tmp_path / "saved" / "adapter_config.json").read_text()
    (tmp_path / "saved" / "adapter_config.json").write_text(
        json.dumps({**json.loads(config), "init_lora_weights": init})
    )
    with pytest.raises(InvalidAdapter) as caught:
        registered(base, tmp_path / "saved", tmp_path / "registered")
    assert caught.value.param == "adapter_config.init_lora_weights"
    converted = str(init).lower().startswith(tuple(CONVERTED))
    says = "path_initial_model_for_weight_conversion" if converted else "merge_and_unload"
    assert says in caught.value.message or not isinstance(init, str)


SERVED_ALIKE = {
    "auto_mapping", "base_model_name_or_path", "peft_version", "revision", "inference_mode", "lora_dropout",
    "eva_config", "corda_config", "lora_ga_config", "loftq_config",  # how it was initialized
    "megatron_core", "qalora_group_size", "runtime_config",  # used by options that are refused, or not saved
    "velora_config",  # changes the backward pass only
    "ensure_weight_tying",  # the tied adapters are both in the file
}  # fmt: skip
READ = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
}  # fmt: skip


def test_every_field_of_pefts_config_is_read_refused_or_changes_nothing() -> None:
    """A field of a newer peft has to be sorted first."""
    refused = {*adapter_config._MERGED, *adapter_config._OFF}
    assert set(LoraConfig.__dataclass_fields__) == SERVED_ALIKE | READ | refused
