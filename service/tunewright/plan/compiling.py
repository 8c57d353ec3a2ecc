"""Where it pays to compile a run's layers with torch.compile. Pure."""

from __future__ import annotations

from dataclasses import replace

from tunewright.plan.defaults import Resolved
from tunewright.plan.memory import Run
from tunewright.plan.methods import METHODS
from tunewright.plan.shape import ModelShape
from tunewright.plan.time import flops_per_token

_FLOPS = 1e17
"""The arithmetic of a run from which on it pays: about five minutes of an H100, of which compiled layers save one.
Compiling takes 15 s, once more where lengths differ, and again in each process that goes on with the run."""


def compiled_where_it_pays(shape: ModelShape, run: Run, resolved: Resolved, tokens: int) -> Run:
    """The run of so many tokens, with `compiled` as the request says, or else decided."""
    if run.is_sharded:  # its layers are gathered by hooks, which were not compiled yet
        return replace(run, compiled=False)
    if resolved.torch_compile is not None:
        return replace(run, compiled=resolved.torch_compile)
    work = flops_per_token(shape, run) * tokens
    pays = run.device == "cuda" and METHODS[resolved.method].compiles and work >= _FLOPS and not shape.experts
    return replace(run, compiled=pays)
