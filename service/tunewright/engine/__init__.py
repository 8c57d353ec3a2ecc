"""Everything about vLLM: how it is started, requests to it, and the adapters that it holds. It is used through its
command line and HTTP only, so that the same code supports every pinned version. Imports neither `api/` nor vllm."""
