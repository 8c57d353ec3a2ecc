"""Backups: archives of the database and of what it refers to. They are made and restored while a service may run.

The command line makes archives and requests restores, `serve` carries a pending restore out, and no other part of the
service imports this package.
"""
