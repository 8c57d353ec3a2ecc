"""Stands in for vLLM's server in benchmarks/gateway.py. A process that is no server gets the real package."""

import importlib
import sys
from pathlib import Path

if "vllm.entrypoints.openai.api_server" not in sys.orig_argv:
    _folder = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _folder]
    del sys.modules["vllm"]
    sys.modules["vllm"] = importlib.import_module("vllm")
