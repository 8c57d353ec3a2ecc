"""Adapters that were saved otherwise than by peft's `save_pretrained`, or that vLLM cannot serve as they are: what is
taken computes what the adapter computed where it was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from models import Tensors, llama, load, load_adapted, logits, qwen2, save_adapter, save_model  # noqa: E402
from tunewright.errors import InvalidRequest  # noqa: E402
from tunewright.registry.adapter_intake import TakenAdapter, check_and_write  # noqa: E402
from tunewright.registry.base_modules import BaseModules  # noqa: E402
from tunewright.registry.content import adapter_sha256  # noqa: E402

ATTENTION = ["q_proj", "v_proj"]
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama(), tmp_path_factory.mktemp("base") / "base", dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("plain") / "plain", target_modules=ATTENTION)


def take(base: Path, saved: Path, max_rank: int = 16) -> tuple[TakenAdapter, Path]:
    into = saved.with_name(f"{saved.name}-taken")
    into.mkdir()
    weights = next(path for path in saved.iterdir() if path.suffix == ".safetensors")
    with weights.open("rb") as file:
        config = (saved / "adapter_config.json").read_bytes()
        return check_and_write(file, config, BaseModules("tiny", base), base, max_rank, into), into


def refused(base: Path, saved: Path) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        take(base, saved)
    return caught.value


def rewritten(
    adapter: Path,
    into: Path,
    change: Callable[[Tensors], Tensors] = dict,
    config: dict[str, Any] | None = None,
) -> Path:
    into.mkdir()
    save_file(change(load_file(adapter / "adapter_model.safetensors")), into / "adapter_model.safetensors")
    fields = json.loads((adapter / "adapter_config.json").read_text())
    (into / "adapter_config.json").write_text(json.dumps({**fields, **(config or {})}))
    return into


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def own_name(name: str, adapter: str = "default") -> str:
    return name.removesuffix(".weight") + f".{adapter}.weight"


# names

NAMES: dict[str, Callable[[str], str]] = {
    "without the prefix": bare,
    "the inner prefix only": lambda name: name.removeprefix("base_model."),
    "the adapter's name": own_name,
    "another name of the adapter": lambda name: own_name(name, "my-adapter_1"),
    "data parallel": lambda name: f"module.{name}",
    "twice data parallel": lambda name: f"module.module.{own_name(name)}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace("model.layers", "_orig_mod.model.layers"),
    "compiled layers": lambda name: name.replace("self_attn", "_orig_mod.self_attn"),
    "FSDP": lambda name: (
        "_fsdp_wrapped_module." + name.replace("self_attn", "_fsdp_wrapped_module.self_attn")
    ),
    "checkpointed": lambda name: name.replace("self_attn", "_checkpoint_wrapped_module.self_attn"),
    "of a module of Lightning": lambda name: f"model.{own_name(name)}",
    "of Lightning, without the prefix": lambda name: f"model.{bare(name)}",
    "of DeepSpeed in Lightning": lambda name: f"_forward_module.model.{name}",
    "of the model without a head": lambda name: bare(name).removeprefix("model."),
    "the prefix, and no head": lambda name: PREFIX + bare(name).removeprefix("model."),
    "another wrapper": lambda name: f"policy.{bare(name)}",
    "small letters": lambda name: name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"),
    "without .weight": lambda name: name.removesuffix(".weight"),
}


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_the_same_adapter(base: Path, plain: Path, tmp_path: Path, name: str) -> None:
    saved = rewritten(plain, tmp_path / "saved", renamed(NAMES[name]))
    assert sorted(load_file(saved / "adapter_model.safetensors")) != sorted(
        load_file(plain / "adapter_model.safetensors")
    )
    _, folder = take(base, saved)
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, plain)))
    _, reference = take(base, rewritten(plain, tmp_path / "plain"))
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / file).read_bytes() == (reference / file).read_bytes()


def test_a_whole_state_dict_without_the_base_is_taken(base: Path, tmp_path: Path) -> None:
    """With `modules_to_save` twice, as the model has them in memory."""
    options = {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}
    adapter = save_adapter(base, tmp_path / "adapter", **options)

    def as_in_memory(tensors: Tensors) -> Tensors:
        found = {own_name(name): tensor for name, tensor in tensors.items() if "lora_" in name}
        found[f"{PREFIX}lm_head.modules_to_save.default.weight"] = tensors[f"{PREFIX}lm_head.weight"]
        found[f"{PREFIX}lm_head.original_module.weight"] = torch.zeros_like(
            tensors[f"{PREFIX}lm_head.weight"]
        )
        return found

    taken, folder = take(base, rewritten(adapter, tmp_path / "saved", as_in_memory))
    assert taken.is_merge_only
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(lambda name: name.replace("layers", "blocks")), "trained on another base"),
        (lambda t: t | {own_name(n): x.clone() for n, x in t.items()}, "twice, under two names"),
        (
            lambda t: {own_name(n): x for n, x in t.items()} | {own_name(n, "b"): x.clone() for n, x in t.items()},
            "several adapters (b, default)",
        ),
        (lambda t: t | {f"{PREFIX}{Q0}.base_layer.weight": torch.zeros(32, 32)}, "base itself"),
        (lambda t: t | {"epoch": torch.zeros(1)}, "no LoRA weight that is known"),
    ],
)  # fmt: skip
def test_names_that_are_not_known_are_told(
    base: Path, plain: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    assert message in refused(base, rewritten(plain, tmp_path / "saved", change)).message


# patterns


PATTERNS: dict[str, dict[str, Any]] = {
    "alphas": {"alpha_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 11}},
    "ranks": {"rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6}},
    "both": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7, "layers.0.self_attn.q_proj": 5}},
    "rsLoRA": {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 5}},
    "a rank of its own for all": {"r": 64, "rank_pattern": {"q_proj": 2, "v_proj": 3}},
    "embeddings": {
        "target_modules": ["embed_tokens", "q_proj"], "alpha_pattern": {"embed_tokens": 3},
        "rank_pattern": {"q_proj": 6},
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_folded_into_the_weights(base: Path, tmp_path: Path, name: str, dtype: Any) -> None:
    """So every version of vLLM computes the same: it has one rank and one scaling."""

    def cast(tensors: Tensors) -> Tensors:
        return {n: t.to(dtype) if "lora" in n else t for n, t in tensors.items()}

    options = {"target_modules": ATTENTION, **PATTERNS[name]}
    adapter = save_adapter(base, tmp_path / "adapter", change=cast, **options)
    taken, folder = take(base, adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    ranks = {t.shape[0] for n, t in load_file(folder / "adapter_model.safetensors").items() if "_A" in n}
    assert ranks == {config["r"]} == {taken.config.rank}
    torch.testing.assert_close(
        logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)), atol=1e-5, rtol=1e-5
    )


def test_patterns_that_need_no_folding_leave_the_weights_as_they_are(base: Path, tmp_path: Path) -> None:
    options = {"target_modules": ATTENTION, "r": 4, "lora_alpha": 8}
    adapter = save_adapter(
        base, tmp_path / "adapter", rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 4}, **options
    )
    _, folder = take(base, adapter)
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_largest_scaling_is_kept_so_that_nothing_overflows(base: Path, tmp_path: Path) -> None:
    def large(tensors: Tensors) -> Tensors:
        return {n: torch.full_like(t, 3e38) if "q_proj.lora_B" in n else t for n, t in tensors.items()}

    options = {"target_modules": ATTENTION, "alpha_pattern": {"q_proj": 1e9}}
    taken, _ = take(base, save_adapter(base, tmp_path / "adapter", change=large, **options))
    assert taken.config.alpha == 1e9


# MLX


def as_mlx(adapter: Path, into: Path, *, rank: int = 4, scale: float = 2.0, **config: Any) -> Path:
    """The folder that mlx-lm's LoRALinear saves: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner/lora.py."""
    into.mkdir()
    tensors = {}
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        plain = bare(name).replace(".lora_magnitude_vector", ".m").removesuffix(".weight")
        plain = plain.replace("lora_A", "lora_a").replace("lora_B", "lora_b")
        tensors[plain] = tensor.t().contiguous()
    save_file(tensors, into / "adapters.safetensors", metadata={"format": "mlx"})
    fields = {
        "fine_tune_type": "lora", "num_layers": 16, "model": "org/llama", "iters": 1000, "batch_size": 4,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0}, **config,
    }  # fmt: skip
    (into / "adapter_config.json").write_text(json.dumps(fields))
    return into


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_adapter_of_mlx_is_taken(base: Path, tmp_path: Path, dtype: Any) -> None:
    def cast(tensors: Tensors) -> Tensors:
        return {n: t.to(dtype) for n, t in tensors.items()}

    targets = [*ATTENTION, "k_proj", "down_proj"]
    adapter = save_adapter(base, tmp_path / "a", target_modules=targets, lora_alpha=8, change=cast)
    taken, folder = take(base, as_mlx(adapter, tmp_path / "mlx"))
    assert (taken.config.rank, taken.config.scaling, taken.config.base_hint) == (4, 2.0, "org/llama")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)))


def test_dora_of_mlx_is_taken_for_merging(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "a", target_modules=ATTENTION, lora_alpha=8, use_dora=True)
    taken, folder = take(base, as_mlx(adapter, tmp_path / "mlx", fine_tune_type="dora"))
    assert taken.is_merge_only
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)))


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type", "mlx_lm.fuse"),
        ({"lora_parameters": None}, "lora_parameters", "rank and scale"),
        ({"lora_parameters": {"rank": 4}}, "lora_parameters.scale", "positive number"),
        (
            {"lora_parameters": {"rank": 4, "scale": 2, "alpha": 16}},
            "lora_parameters.alpha",
            "older versions",
        ),
        ({"lora_parameters": {"rank": "4", "scale": 2}}, "lora_parameters.rank", "positive number"),
    ],
)
def test_a_config_of_mlx_that_is_not_clear_names_its_field(
    base: Path, plain: Path, tmp_path: Path, config: dict[str, Any], field: str, message: str
) -> None:
    error = refused(base, as_mlx(plain, tmp_path / "mlx", **config))
    assert error.param == f"adapter_config.{field}"
    assert message in error.message


def test_what_mlx_adapts_otherwise_than_peft_is_refused(base: Path, plain: Path, tmp_path: Path) -> None:
    for at, (name, message) in enumerate(
        [
            ("model.embed_tokens.lora_a", "changes a tied output head too"),
            ("model.layers.0.mlp.switch_mlp.up_proj.lora_a", "experts"),
            ("model.layers.0.self_attn.q_proj.lora_a_scales", "no LoRA weight as mlx-lm names them"),
        ]
    ):
        saved = as_mlx(plain, tmp_path / f"mlx{at}")
        tensors = load_file(saved / "adapters.safetensors")
        shape = (4, 32, 4) if "switch" in name else (96, 4)
        save_file(tensors | {name: torch.zeros(shape)}, saved / "adapters.safetensors")
        assert message in refused(base, saved).message


# what is served only when it is merged

MERGED: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "the head": {"modules_to_save": ["lm_head"]},
    "the embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "biases": {"bias": "all"},
    "its own biases": {"bias": "lora_only"},
    "LoRA biases": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [5, 3, 90]},
    "DoRA, patterns": {"use_dora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 2}},
    "some layers": {"use_dora": True, "layers_to_transform": [1]},
}


@pytest.mark.parametrize("name", MERGED)
def test_what_vllm_cannot_serve_is_taken_for_merging(tmp_path: Path, name: str) -> None:
    base = save_model(qwen2(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION, **MERGED[name])
    taken, folder = take(base, adapter)
    assert taken.is_merge_only
    assert taken.targets == sorted(ATTENTION)
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_base_does_not_have_keep_no_adapter_from_being_served(
    base: Path, tmp_path: Path, bias: str
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION, bias=bias)
    taken, folder = take(base, adapter)
    assert not taken.is_merge_only
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, adapter)))


def test_embeddings_that_were_trained_beside_peft_are_taken_for_merging(tmp_path: Path) -> None:
    """As `save_pretrained(save_embedding_layers=True)` writes them."""
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)
    trained = torch.randn(96, 32)

    def with_embeddings(tensors: Tensors) -> Tensors:
        return tensors | {f"{PREFIX}model.embed_tokens.weight": trained}

    saved = rewritten(adapter, tmp_path / "saved", with_embeddings)
    taken, folder = take(base, saved)
    assert taken.is_merge_only
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, saved)))
    tied = save_model(llama(tied=True), tmp_path / "tied", dtype=torch.float32)
    shutil.rmtree(folder)
    error = refused(tied, saved)
    assert error.param == "adapter_config.modules_to_save"
    assert "one weight for its embeddings and its output head" in error.message


@pytest.mark.parametrize("tied", [False, True])
def test_the_bases_own_embeddings_keep_no_adapter_from_being_served(tmp_path: Path, tied: bool) -> None:
    """`save_pretrained(save_embedding_layers=True)` writes them, trained or not."""
    base = save_model(llama(tied=tied), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)
    weights = load_file(base / "model.safetensors")
    whole = {
        f"{PREFIX}{name}": t
        for name, t in weights.items()
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    assert len(whole) == (1 if tied else 2)
    saved = rewritten(adapter, tmp_path / "saved", lambda tensors: tensors | whole)
    taken, folder = take(base, saved)
    assert not taken.is_merge_only
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(load_adapted(base, saved)))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
        ({"modules_to_save": [1]}, "modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "some"}, "bias"),
        ({"bias": ["all"]}, "bias"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": {}, "use_dora": True}, "lora_bias"),
        ({"trainable_token_indices": "all"}, "trainable_token_indices"),
        ({"trainable_token_indices": {"embed_tokens": 5}}, "trainable_token_indices"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_dora": True, "layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_what_cannot_be_merged_names_its_field(
    base: Path, plain: Path, tmp_path: Path, config: dict[str, Any], field: str
) -> None:
    assert (
        refused(base, rewritten(plain, tmp_path / "saved", config=config)).param == f"adapter_config.{field}"
    )


def test_another_type_of_adapter_is_taken_after_pefts_conversion(base: Path, tmp_path: Path) -> None:
    from peft import LoHaConfig, get_peft_model, save_as_lora

    torch.manual_seed(3)
    config = LoHaConfig(task_type="CAUSAL_LM", r=2, alpha=2, target_modules=ATTENTION, init_weights=False)
    adapted = get_peft_model(load(base), config).eval()
    adapted.save_pretrained(tmp_path / "loha")
    error = refused(base, tmp_path / "loha")
    assert error.param == "adapter_config.peft_type"
    assert "peft.save_as_lora(folder, model, rank)" in error.message
    save_as_lora(tmp_path / "lora", adapted, rank=8)
    _, folder = take(base, tmp_path / "lora")
    torch.testing.assert_close(logits(load_adapted(base, folder)), logits(adapted), atol=1e-3, rtol=1e-3)


def test_what_a_merge_reads_is_part_of_the_hash(tmp_path: Path) -> None:
    base = save_model(llama(), tmp_path / "base")
    tokens = {"target_modules": ATTENTION, "trainable_token_indices": [5, 3]}
    adapter = save_adapter(base, tmp_path / "a", **tokens)
    other = rewritten(adapter, tmp_path / "b", config={"trainable_token_indices": [3, 5]})
    assert adapter_sha256(take(base, adapter)[1]) != adapter_sha256(take(base, other)[1])
