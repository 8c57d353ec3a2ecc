"""Batches: files of requests, answered at a priority below live traffic."""
