"""Routes, schemas and creation that all kinds of jobs share."""
