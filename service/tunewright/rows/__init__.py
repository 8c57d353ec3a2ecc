"""The formats of training data, and how rows are tokenized."""
