"""Tunewright: fine-tune language models over REST and serve the results, in one service."""

__version__ = "0.1.0"
