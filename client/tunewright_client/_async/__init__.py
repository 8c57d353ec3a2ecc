"""The asyncio client. `tunewright_client/_sync` is generated from this package by `client/generate_sync.py`."""
