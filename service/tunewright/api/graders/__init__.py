"""Graders over HTTP: OpenAI's routes that run one and check one."""
