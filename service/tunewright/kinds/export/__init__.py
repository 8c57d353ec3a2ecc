"""The job kind `export`."""
