"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning API."""
