"""`/v1/exports`."""
