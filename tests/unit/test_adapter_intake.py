"""Whatever is in the two files of an adapter, it is taken or refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import CONFIG, adapter_files, lora_tensors, safetensors, zeros
from tunewright.config import embedded_base_path
from tunewright.errors import InvalidRequest
from tunewright.registry.adapter_intake import TakenAdapter, base_hint, check_and_write
from tunewright.registry.base_modules import BaseModules

FIELDS = [
    *CONFIG, "lora_bias", "trainable_token_indices", "ensure_weight_tying", "fine_tune_type", "lora_parameters",
    "use_qalora", "exclude_modules", "model",
]  # fmt: skip
NAMES = [
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "model.layers.0.self_attn.q_proj.lora_A.default.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.model.embed_tokens.weight",
    "base_model.model.model.norm.weight",
    "base_model.model.model.norm.token_adapter.trainable_tokens_delta",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "base_model.model.lm_head.modules_to_save.default.weight",
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias",
    "model.layers.0.self_attn.q_proj.lora_a",
    "module", "base_model.model.", ".lora_A.weight", "_orig_mod", "lora_A.x.weight",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["LORA", "all", "none", "lora_only", "lm_head", "embed_tokens", "q_proj", "dora", "lora"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["rank", "scale", "alpha", "embed_tokens", "norm", "q_proj"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def base() -> BaseModules:
    return BaseModules("tiny", embedded_base_path())


@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    others=st.dictionaries(
        st.sampled_from(NAMES),
        st.lists(st.sampled_from([0, 1, 3, 4, 256, 2048]), max_size=3).filter(
            lambda shape: prod(shape) <= 2048 * 256
        ),
        max_size=3,
    ),
    without_type=st.booleans(),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_adapter_confuses_the_intake(
    base: BaseModules,
    tmp_path_factory: pytest.TempPathFactory,
    changes: dict[str, Any],
    others: dict[str, list[int]],
    without_type: bool,
) -> None:
    fields = {**CONFIG, **changes}
    if without_type:
        fields.pop("peft_type")
    tensors = lora_tensors() | {name: zeros(*shape) for name, shape in others.items()}
    config, weights = json.dumps(fields).encode(), io.BytesIO(safetensors(tensors))
    with contextlib.suppress(InvalidRequest):
        base_hint(config)
        folder = Path(tmp_path_factory.mktemp("intake"))
        check_and_write(weights, config, base, embedded_base_path(), 64, folder)


def take(base: BaseModules, folder: Path, **config: Any) -> TakenAdapter:
    files = adapter_files(config)
    weights = io.BytesIO(files["adapter_model.safetensors"])
    folder.mkdir()
    return check_and_write(weights, files["adapter_config.json"], base, embedded_base_path(), 64, folder)


def test_null_is_absent(base: BaseModules, tmp_path: Path) -> None:
    names = (
        "bias",
        "modules_to_save",
        "use_dora",
        "lora_bias",
        "trainable_token_indices",
        "init_lora_weights",
    )
    taken = take(base, tmp_path / "a", **dict.fromkeys(names))
    assert not taken.is_merge_only
