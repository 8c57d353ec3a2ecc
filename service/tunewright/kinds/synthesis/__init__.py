"""The job kind `synthesis`."""
