"""Checkpoints that another number of processes can resume from, sharded or not: they are what one process would write.

The Trainer's own checkpoints of a sharded model can be read by sharded ones alone, and random states by as many
processes as have written them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer
from transformers.trainer_pt_utils import safe_globals

from tunewright.jobs.process import rank
from tunewright.trainer.sharding import shard

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # the Trainer's own names


class PortableCheckpoints(Trainer):  # type: ignore[misc]
    """A part of trainers of every method."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None:
            shard(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # A sharded model was loaded from the checkpoint before it was sharded (`trainer.training`).
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self.model)
        if rank() == 0:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer.state_dict())
        if rank() == 0:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Mapped, not read: each rank reads its part.
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.optimizer.load_state_dict(sharded_state(state, parameters))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The state of this rank; where as many have not saved it, rank 0 has that of the one process, or of the first.
        Other ranks then go on with the states that they start with."""
        if checkpoint is None:
            return
        folder, alone = Path(checkpoint), self.args.world_size == 1
        if (folder / ("rng_state.pth" if alone else f"rng_state_{rank()}.pth")).is_file():
            super()._load_rng_state(checkpoint)
            return
        other = folder / ("rng_state_0.pth" if alone else "rng_state.pth")
        if rank() == 0 and other.is_file():
            _set_random_states(other)


def _set_random_states(file: Path) -> None:
    with safe_globals():
        states = torch.load(file, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        # A list where there were several processes: of the devices that each of them saw.
        found = states["cuda"]
        torch.cuda.set_rng_state(found[0] if isinstance(found, list) else found)


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with whole tensors on the CPU, on rank 0; empty on others, which must call it too."""
    found = {
        number: {name: _gathered(value) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {"state": found, "param_groups": state["param_groups"]} if rank() == 0 else {}


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a sharded model on the CPU, on rank 0, tied ones as one tensor; None for each on others, which
    must call it too."""
    found = dict[int, Any]()
    weights = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in found:
            found[id(value)] = _gathered(value.detach())
        weights[name] = found[id(value)]
    return weights


def _gathered(value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value.cpu() if isinstance(value, torch.Tensor) else value
    whole = value.full_tensor()
    return whole.cpu() if rank() == 0 else None


def sharded_state(state: dict[str, Any], parameters: list[torch.Tensor]) -> dict[str, Any]:
    """The state of an optimizer of sharded parameters: of each whole tensor the part of this rank."""

    def part(value: Any, parameter: torch.Tensor) -> Any:
        is_whole = isinstance(value, torch.Tensor) and value.shape == parameter.shape
        if not (is_whole and isinstance(parameter, DTensor)):
            return value
        # Every rank has the whole: nothing is sent.
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )

    return {
        "state": {
            number: {name: part(value, parameters[number]) for name, value in of_one.items()}
            for number, of_one in state["state"].items()
        },
        "param_groups": state["param_groups"],
    }
