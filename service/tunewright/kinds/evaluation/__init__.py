"""The job kind `evaluation`."""
