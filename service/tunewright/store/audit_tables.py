"""The table of the audit log (`store.audit`)."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, String, Table, Text

from tunewright.store.columns import Serial, metadata

audit_logs = Table(
    "audit_logs",  # who did what; a trigger refuses changes of rows
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("effective_at", Float, nullable=False, index=True),
    Column("type", String(64), nullable=False),
    Column("project", String(64), nullable=False),  # "" where nobody knows it: a wrong key
    Column("actor", String(64), nullable=False),  # the id of the key; "" without one
    Column("subject", Text),  # whom a token was for
    Column("peer", String(64)),
    Column("request_id", String(128)),
    Column("method", String(16)),
    Column("path", Text),
    Column("status", Integer),
    Column("resource", Text),  # the id or name in the path
    Column("details", JSON),
    Index("ix_audit_logs_project", "project", "seq"),
)
