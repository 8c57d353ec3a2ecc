"""Imports of torch and what is built on it, which take most of the time in which a job's process starts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def prepare_environment() -> None:
    """Set what these packages read from the environment when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"  # models are local folders: nothing has to be looked up


FOR_FOUR_BITS = "bitsandbytes"


@contextmanager
def quick_imports(*, four_bits: bool = False) -> Iterator[None]:
    """Import torch and what is built on it in four fifths of the time. peft and transformers import bitsandbytes where
    it is installed, which takes seconds: it counts as not installed, unless the process needs a base in 4 bits.

    The garbage collector would examine the growing number of modules again and again, and free nothing.
    """
    if four_bits:
        need(FOR_FOUR_BITS)
    else:
        sys.modules[FOR_FOUR_BITS] = None  # type: ignore[assignment]
    with _without_collector():
        yield


@contextmanager
def _without_collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import modules of vLLM that compute nothing without torch's compiler, which takes longer than all of them:
    `vllm.env_override` imports and corrects it, and a function of another module is compiled where it is defined."""
    if "vllm" in sys.modules:
        yield
        return
    import torch

    override = "vllm.env_override"
    sys.modules[override] = ModuleType(override)
    compiled, torch.compile = torch.compile, _uncompiled
    try:
        with _without_collector():
            yield
    finally:
        torch.compile = compiled
        del sys.modules[override]


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """In place of `torch.compile`, also as a decorator with options."""
    return function if function is not None else _uncompiled


def need(package: str) -> None:
    """Run this process's command again in a new interpreter where the package counts as not installed in this one: it
    is a fork of one that has imported the others without it."""
    if package in sys.modules and sys.modules[package] is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.orig_argv[0], sys.orig_argv)
