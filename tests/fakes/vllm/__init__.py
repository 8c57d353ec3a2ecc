"""Stands in for vLLM where a test needs the whole service and no model: put its folder first on PYTHONPATH."""
