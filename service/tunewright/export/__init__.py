"""Makes models and adapters of others, from files to files: an adapter merged into its base, adapters combined.

Owns what an export computes and the files it writes. Knows folders only, not the API, the store, the scheduler or the
engines. Importing this package must not import torch: only its modules that compute do.
"""

from __future__ import annotations


class ExportStopped(Exception):
    """`stop` said so. What was whole stays; the next call goes on from it."""
