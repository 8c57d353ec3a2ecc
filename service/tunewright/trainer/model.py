"""Loads the base for a tuning type: in 16 bits for LoRA, quantized to NF4 for QLoRA, in float32 for full tuning."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.process import rank
from tunewright.plan.methods import METHODS
from tunewright.plan.pitfalls import HEAD_NOT_TRAINED
from tunewright.trainer.four_bit import nf4, prepared
from tunewright.trainer.initial import new_adapter
from tunewright.trainer.spec import TrainingSpec


def load_tokenizer(spec: TrainingSpec) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the chat template that the job trains with."""
    tokenizer = AutoTokenizer.from_pretrained(
        spec.base_path, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.chat_template
    if tokenizer.pad_token_id is None:
        # Padding is masked out of attention and loss; which token it is does not matter.
        named = (tokenizer.eos_token, tokenizer.unk_token, *_special(tokenizer))
        first = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = next((token for token in named if token is not None), first)
    return tokenizer


def _special(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Tokens that are special already: an ordinary one that became special would cut words where it is in them, in a
    tokenizer that is saved and read again."""
    return (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def load_model(spec: TrainingSpec, initial: Path) -> PreTrainedModel | PeftModel:
    """The model to train, with its adapter where there is one, on its device. `initial`: the folder of what the adapter
    begins with (`trainer.initial`).

    The CPU trains in float32 (a 16-bit base's values fit exactly); a GPU keeps the base in bfloat16 and the adapter
    in float32. QLoRA computes in bfloat16 on both, and keeps in it what it does not quantize. Full fine-tuning keeps
    float32 weights, on a GPU under bfloat16 autocast: steps of 2e-5 would round away in bfloat16 weights.
    """
    tuning = spec.tuning
    on_gpu = spec.device != "cpu"
    quantized = tuning.type == "qlora"
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if quantized or (on_gpu and tuning.type == "lora") else torch.float32,
        "attn_implementation": _attention(on_gpu),
        "trust_remote_code": spec.trust_remote_code,
        "local_files_only": True,
        # A sharded model is read by rank 0 alone, and is on the GPUs in parts only.
        "device_map": {"": rank() if on_gpu and not spec.is_sharded else "cpu"},
    }
    if quantized:
        options["quantization_config"] = nf4()
    config = AutoConfig.from_pretrained(
        spec.base_path, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    if getattr(config, "quantization_config", None) is not None:
        raise TrainingFailed(
            "unsupported_base", f"base {spec.base_name} is quantized already; train on its 16-bit form"
        )
    if METHODS[spec.method].scores:
        model = _with_score(spec, options)
    else:
        model = AutoModelForCausalLM.from_pretrained(spec.base_path, **options)
    model.config.use_cache = False
    if tuning.type == "full":
        return model
    if quantized:
        model = prepared(model, checkpointing=spec.checkpointing)
    adapted = _adapted(model, spec, initial)
    for config in adapted.peft_config.values():
        # A name that means something on other machines, never a local path.
        config.base_model_name_or_path = spec.base_hub_id or spec.base_name
    if on_gpu and not quantized:
        leave_casts_to_autocast(adapted)
        for parameter in adapted.parameters():  # a head that is trained too has the base's 16 bits
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    return adapted


def _with_score(spec: TrainingSpec, options: dict[str, Any]) -> PreTrainedModel:
    """The base with a head that gives one number, in the place of the one that gives tokens. A new head is drawn by the
    job's seed."""
    set_seed(spec.seed)
    try:
        return AutoModelForSequenceClassification.from_pretrained(spec.base_path, num_labels=1, **options)
    except ValueError as error:  # "Unrecognized configuration class ..."
        text = (
            f"{spec.base_name} cannot be a reward model: transformers has no classifier of its architecture"
        )
        raise TrainingFailed("unsupported_base", text) from error


def leave_casts_to_autocast(adapted: PeftModel) -> None:
    """Keep peft from casting the inputs of adapted layers to float32, the adapter's type: autocast casts them back to
    bfloat16, so that both casts together change nothing, and take time and memory (docs/decisions/0025).

    For a model that runs under autocast only. Where the input passes through dropout or DoRA before the product of
    matrices, these compute in its type, and the cast stays. bitsandbytes' layers have no such cast.
    """
    for module in adapted.modules():
        if isinstance(module, LoraLinear):
            drops = any(not isinstance(one, torch.nn.Identity) for one in module.lora_dropout.values())
            module.cast_input_dtype_enabled = drops or bool(module.lora_variant)


def _adapted(model: PreTrainedModel, spec: TrainingSpec, initial: Path) -> PeftModel:
    """The model with the parent adapter to continue from, or with a new one."""
    tuning = spec.tuning
    if spec.parent_adapter is not None:
        parent = PeftModel.from_pretrained(model, spec.parent_adapter, is_trainable=True)
        return _without_adapted_head(parent)
    try:
        adapted = new_adapter(
            model,
            LoraConfig(
                # with SEQ_CLS the head that gives the score is trained too
                task_type="SEQ_CLS" if METHODS[spec.method].scores else "CAUSAL_LM",
                r=tuning.rank,
                lora_alpha=tuning.alpha,
                lora_dropout=tuning.dropout,
                target_modules=tuning.target_modules,
                use_rslora=tuning.use_rslora,
                use_dora=tuning.use_dora,
                bias="none",
            ),
            tuning.init,
            initial,
        )
    except ValueError as error:  # "Target modules {...} not found in the base model"
        raise TrainingFailed("invalid_target_modules", str(error)) from error
    if not isinstance(adapted, PeftModel):
        raise TrainingFailed("unsupported_base", f"peft cannot adapt {type(model).__name__}")
    return _without_adapted_head(adapted)


def _without_adapted_head(adapted: PeftModel) -> PeftModel:
    """Raises TrainingFailed where the output head, whatever its name, has an adapter."""
    if isinstance(adapted.get_base_model().get_output_embeddings(), BaseTunerLayer):
        raise TrainingFailed("invalid_target_modules", HEAD_NOT_TRAINED)
    return adapted


def _attention(on_gpu: bool) -> str:
    return "flash_attention_2" if on_gpu and importlib.util.find_spec("flash_attn") else "sdpa"
