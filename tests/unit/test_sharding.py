"""A model whose layers are sharded, and TRL's fused head, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed
from trl.trainer.utils import add_fused_lm_head

from tunewright.trainer.sharding import have_head_run

TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def _alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> PreTrainedModel:
    set_seed(1)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    add_fused_lm_head(made)
    return made


def gradients(of: PreTrainedModel) -> list[torch.Tensor]:
    """Of two batches."""
    for _ in range(2):
        of(input_ids=TOKENS, labels=TOKENS, fused_lm_head=True).loss.backward()
    return [getattr(one.grad, "full_tensor", lambda one=one: one.grad)() for one in of.parameters()]


@pytest.mark.usefixtures("_alone")
def test_the_weights_of_a_fused_head_are_gathered_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate shards the last norm, the embeddings and the head together. torch before 2.13 gathers such a group
    again once each of its modules has run, and does not complete those of which some have not."""
    monkeypatch.setattr(
        FSDPState, "_force_complete_incomplete_states", lambda _, output: output, raising=False
    )
    sharded = model()
    have_head_run(sharded)
    for layer in sharded.model.layers:
        fully_shard(layer)
    head = sharded.get_output_embeddings()
    fully_shard([sharded.model.norm, sharded.get_input_embeddings(), head], reshard_after_forward=False)
    fully_shard(sharded)

    sharded(input_ids=TOKENS, labels=TOKENS, fused_lm_head=True)

    assert fully_shard.state(head)._modules_to_run_forward == set()
    torch.testing.assert_close(gradients(sharded), gradients(model()))
