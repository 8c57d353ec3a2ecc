"""`/v1/deployments`."""
