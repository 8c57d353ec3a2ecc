"""What is installed and how containers run: pinned by hash or version, and with no more rights than they need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_torch_is_installed_by_its_hash() -> None:
    text = (ROOT / "requirements" / "torch.txt").read_text()
    assert re.search(r"^torch==[\d.]+\+cpu \\$", text, re.MULTILINE)
    hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", text)
    assert len(set(hashes)) == len(hashes) == 8
    for line in (ROOT / "Makefile").read_text().splitlines():
        if "pip install" in line and "requirements/" in line and not re.search("openai-2|clients", line):
            assert "--require-hashes" in line, line
        assert "pip install -q torch" not in line.replace('"', "")


def test_the_gpu_image_is_pinned() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG CUDA_IMAGE=nvidia/cuda:[\w.-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert "--constraint requirements/gpu.txt" in text
    pinned = (ROOT / "requirements" / "gpu.txt").read_text()
    for name in ("torch", "vllm", "trl", "peft"):
        assert re.search(rf"^{name}==", pinned, re.MULTILINE), name


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_more_rights_than_it_needs(name: str) -> None:
    service: dict[str, Any] = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) <= {"SYS_NICE"}
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["pids_limit"] > 0
    assert "mem_limit" in service
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("privileged")
