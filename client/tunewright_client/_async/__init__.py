"""The asyncio client: a driver over httpx.AsyncClient, and the methods that hand it the shared flows."""
