"""The error of backups and restores."""

from __future__ import annotations


class BackupError(Exception):
    """A backup or restore failed. The message is one line: what is wrong, where, and what to do."""
