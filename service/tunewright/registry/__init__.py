"""Files and their hashes: bases, uploads, adapters, artifacts. Knows folders, but neither the API nor the engines."""
