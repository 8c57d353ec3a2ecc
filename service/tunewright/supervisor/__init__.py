"""Child processes and their lifeline. Imports nothing of the rest of the service."""
