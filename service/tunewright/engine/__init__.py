"""vLLM: how it is started, how it is talked to, and which adapters it holds. Driven over HTTP and its command line
only, so that one code serves every version that is pinned. Imports no `api/`, and no vllm."""
