"""`/v1/cleanings`."""
