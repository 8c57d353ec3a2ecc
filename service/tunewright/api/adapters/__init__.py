"""`/v1/adapters`."""
