"""`GET /metrics`: what the service and its engines tell Prometheus (docs/decisions/0050)."""
