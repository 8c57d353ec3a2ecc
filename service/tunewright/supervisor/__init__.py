"""Processes and their lifeline. Knows nothing of the rest of the service."""
