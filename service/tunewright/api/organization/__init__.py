"""Projects and API keys, shaped like OpenAI's admin API."""
