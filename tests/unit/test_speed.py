"""Steps without an attention mask, and of compiled layers, are those of the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_defaults import resolved as resolved_with
from test_plan import DATA, qwen2_7b
from transformers import AutoConfig, AutoModelForCausalLM

from tunewright.plan.compiling import compiled_where_it_pays
from tunewright.plan.fitting import run_of
from tunewright.trainer.speed import compile_layers, leave_out_mask, uncompiled

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHARED,
    "qwen2": SHARED,
    "mistral": SHARED | {"sliding_window": 4},
    "gemma3_text": SHARED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": SHARED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "falcon": SIZES | {"alibi": True},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4},
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    for name in ("attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def batch() -> dict[str, torch.Tensor]:
    """Three rows of 9, 5 and 2 tokens, padded on the right."""
    ids = torch.randint(1, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7])
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.where(mask.bool(), ids, -100),
    }


def step(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the batch, and the gradients."""
    model.zero_grad()
    loss = model(**batch(), use_cache=False).loss
    loss.backward()
    return float(loss), {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


def assert_same(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_the_mask_is_that_with_it(family: str) -> None:
    model = model_of(family)
    with_mask = step(model)
    seen = list[object]()
    leave_out_mask(model)
    model.base_model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["attention_mask"]), with_kwargs=True
    )
    assert_same(with_mask, step(model))
    # OPT calls a part of its base model, so that the mask stays.
    assert seen == ([] if family == "opt" else [None])


def test_a_router_s_loss_keeps_the_mask() -> None:
    """Without it padding would count as tokens."""
    model = model_of("qwen3_moe")
    model.config.output_router_logits = True
    plain = step(model)
    leave_out_mask(model)
    assert step(model)[0] == plain[0]


def adapted() -> PeftModel:
    model = get_peft_model(
        model_of("qwen2"), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    )
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_an_adapter_s_step_of_compiled_layers_is_that_of_the_plain_ones() -> None:
    """All layers have one graph, since only then does compiling take a time that does not grow with the model."""
    torch._dynamo.reset()
    model = adapted()
    plain = step(model)
    assert compile_layers(model, "aot_eager") == 2
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_same(plain, step(model))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 2, (
        "the first layer's input needs no gradient"
    )
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with uncompiled(), torch.no_grad():
        loss = float(model.eval()(**batch(), use_cache=False).loss)
    assert loss == pytest.approx(plain[0], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled, "evaluations compile nothing"


def test_layers_that_cannot_be_compiled_are_computed_as_before() -> None:
    torch._dynamo.reset()
    model = adapted()
    plain = step(model)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C compiler")

    compile_layers(model, broken)  # type: ignore[arg-type]  # torch.compile takes functions too
    assert_same(plain, step(model))


@pytest.mark.parametrize(
    ("asked", "device", "method", "tokens", "expected"),
    [
        (None, "cuda", "supervised", 10**8, True),
        (None, "cuda", "supervised", 10**5, False),
        (None, "cuda", "dpo", 10**8, False),
        (None, "cpu", "supervised", 10**8, False),
        (True, "cuda", "dpo", 1, True),
        (False, "cuda", "supervised", 10**8, False),
    ],
)
def test_layers_are_compiled_where_it_pays(
    asked: bool | None, device: str, method: str, tokens: int, expected: bool
) -> None:
    resolved = resolved_with(device=device).model_copy(update={"torch_compile": asked, "method": method})
    run = compiled_where_it_pays(qwen2_7b(), run_of(resolved, DATA, device), resolved, tokens)
    assert run.compiled is expected
