"""The job kind `fine_tuning`."""
