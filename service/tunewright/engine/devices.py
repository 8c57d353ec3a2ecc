"""Which devices there are. No torch: the driver's own listing is enough."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tunewright.config import Settings, visible_gpus


def find_devices(settings: Settings) -> list[str]:
    """`["cpu"]`, or `["cuda:0", ...]`. Raises RuntimeError where GPUs are asked for and there are none."""
    if settings.device == "cpu":
        return ["cpu"]
    found = [str(index) for index in _gpu_indices()]
    allowed = visible_gpus()
    gpus = found if allowed is None or not found else allowed
    if not gpus and settings.device == "cuda":
        raise RuntimeError("--device cuda: no NVIDIA GPU was found (nvidia-smi -L lists none)")
    return [f"cuda:{index}" for index in gpus] or ["cpu"]


def _gpu_indices() -> list[int]:
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            listing = subprocess.run(
                [tool, "-L"], capture_output=True, text=True, timeout=20, check=True
            ).stdout
            return [int(index) for index in re.findall(r"^GPU (\d+):", listing, re.MULTILINE)]
        except (OSError, subprocess.SubprocessError):
            pass  # a broken driver: look at the device files
    return sorted(
        int(path.name.removeprefix("nvidia"))
        for path in Path("/dev").glob("nvidia[0-9]*")
        if path.name.removeprefix("nvidia").isdigit()
    )
