"""`/v1/aliases`."""
