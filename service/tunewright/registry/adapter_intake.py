"""What is done with the files of an adapter that strangers sent, as functions for `apart.call_apart`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from tunewright.registry.adapter_check import CheckedAdapter, check_adapter
from tunewright.registry.adapter_config import parse_adapter_config
from tunewright.registry.base_modules import BaseModules


def check_and_write(
    weights: BinaryIO, config: bytes, base: BaseModules, max_rank: int, folder: Path
) -> CheckedAdapter:
    """Check the adapter and write it to `folder` in its canonical form. Returns it without its tensors.

    Raises InvalidAdapter and OSError.
    """
    checked = check_adapter(config, weights, base, max_rank=max_rank)
    checked.write(weights, folder)
    return replace(checked, tensors=[])


def base_hint(config: bytes) -> str | None:
    """The name of the base where the adapter was trained. Raises InvalidAdapter."""
    return parse_adapter_config(config).base_hint
