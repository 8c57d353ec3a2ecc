"""Full fine-tuning with weights, gradients and optimizer shared between the GPUs of a job: FSDP2, by accelerate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, Trainer

from tunewright.trainer.spec import TrainingSpec

REFERENCE: dict[str, Any] = {"device_map": None}
"""How TRL is to load the reference of a model that is sharded: whole, to be sharded as well. TRL 1.16 divides it among
the GPUs instead (`auto`), unless the ranks are those of DDP or DeepSpeed."""
_LOADED_BY_RANK_0 = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def prepare_sharded_loading() -> None:
    """Have transformers read the weights in rank 0 alone; the others get theirs from it when the model is sharded."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", _LOADED_BY_RANK_0: "true"}


def spec_at(spec: TrainingSpec, checkpoint: Path) -> TrainingSpec:
    """The spec with the weights of a checkpoint in the place of the base's."""
    return spec.model_copy(update={"base_path": str(checkpoint)})


def sharded_arguments() -> dict[str, Any]:
    """The Trainer's arguments. Each layer is gathered when it computes, and freed behind it, as ZeRO-3 does."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            "cpu_ram_efficient_loading": True,
            "state_dict_type": "FULL_STATE_DICT",
        },
        # Gradients are shared after each batch: kept until the step, they would be whole on each GPU.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def shard(trainer: Trainer) -> None:
    """Have the weights gathered and the gradients added in float32, as one process has them, under the same autocast.
    accelerate's policy would make both bfloat16, and with them what is between the layers.

    On the CPU accelerate 1.15 has no sharding, though torch has: it is told that it has.
    """
    state = trainer.accelerator.state
    if not trainer.is_fsdp_enabled:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    have_head_run(trainer.model)
    # The model to train is loaded. TRL's reference is sharded without a word between the ranks: each needs its weights.
    os.environ[_LOADED_BY_RANK_0] = "false"


def have_head_run(model: PreTrainedModel) -> None:
    """Have the head run, on nothing, after a forward pass of TRL's fused head, which reads the head's weights alone.

    accelerate shards the head together with the last norm, and with tied embeddings. torch before 2.13 gathers such a
    group again only when each of its modules has run since the last time.
    """

    def run(_: PreTrainedModel, __: tuple[Any, ...], options: dict[str, Any], ___: Any) -> None:
        if options.get("fused_lm_head"):
            head = model.get_output_embeddings()
            with torch.no_grad():
                head(head.weight.new_empty(0, head.weight.shape[-1]))

    model.register_forward_hook(run, with_kwargs=True)
