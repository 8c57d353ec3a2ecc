"""What the sync and the async client share: requests, answers, retries, streams, waiting. No input or output.

A method of the API is a generator (a flow, see `flow.py`) that yields what is to be done and is sent the
result. The clients' drivers do it, one with httpx.Client, one with httpx.AsyncClient; nothing else differs
between them.
"""
