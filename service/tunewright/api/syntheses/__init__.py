"""`/v1/syntheses`."""
