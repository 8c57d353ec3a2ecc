"""The blocking client: a driver over httpx.Client, and the methods that hand it the shared flows."""
