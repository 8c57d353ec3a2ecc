"""The blocking client, generated from `tunewright_client/_async` by `client/generate_sync.py`."""
