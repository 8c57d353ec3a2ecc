"""`/v1/evaluations`."""
