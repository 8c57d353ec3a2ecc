"""Backups: archives of the database and of what it refers to, made beside a running service and put back under it.

Beside `api/` and `scheduler/`: the command line makes and restores archives, `serve` carries out a restore that was
decided, and nothing else knows of them.
"""
