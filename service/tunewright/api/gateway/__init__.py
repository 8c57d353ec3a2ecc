"""Generations: from a request for a model's name to the bytes of a vLLM server."""
