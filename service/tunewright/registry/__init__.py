"""Files and their hashes: bases, uploads, artifacts. Knows folders, not the API nor the engines."""
