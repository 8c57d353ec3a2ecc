"""Training data: its formats, their checks, and chat templates as text. No torch, no transformers, no database."""
