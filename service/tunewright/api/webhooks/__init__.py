"""`/v1/webhook_endpoints` and `/v1/webhook_deliveries`."""
