"""The wire: pydantic models of every request and response body. OpenAI's objects carry OpenAI's field names."""
