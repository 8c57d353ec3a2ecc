"""The HTTP application: its server, middleware, errors and OpenAPI document."""
