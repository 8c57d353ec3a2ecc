"""What a row of training data is, and how it becomes tokens."""
