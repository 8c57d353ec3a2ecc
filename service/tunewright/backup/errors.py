"""What can go wrong with a backup."""

from __future__ import annotations


class BackupError(Exception):
    """One line: what is wrong, where, and what to do."""
