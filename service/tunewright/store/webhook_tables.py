"""Tables of webhooks."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from tunewright.store.columns import Serial, metadata

webhook_endpoints = Table(
    "webhook_endpoints",  # addresses that are told of events
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    # what its secret is derived from, with the key of the data folder (`webhooks.signing`)
    Column("salt", String(64), nullable=False),
    Column("hint", String(32), nullable=False),  # the end of the secret
    Column("old_salt", String(64)),  # of the secret before, which signs too until `old_until`
    Column("old_until", Float),
)

webhook_events = Table(
    "webhook_events",  # written in the transaction of what they tell, where an endpoint wants them
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),  # the header `webhook-id`
    Column("project", Text, nullable=False, server_default="default"),
    Column("type", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("data", JSON, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",  # one for each event and endpoint
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("endpoint_id", ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("event_id", ForeignKey("webhook_events.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),  # when the next attempt is to be made, while it is pending
    Column("sent_at", Float),  # when the attempt began that has not ended
    Column("ended_at", Float),
    Column("tries", Integer, nullable=False),  # attempts since it was created, or replayed
    Column("attempts", JSON, nullable=False),  # the newest that have ended (`store.webhook_records.Attempt`)
    Index("ix_webhook_deliveries_due", "state", "due_at"),
)  # fmt: skip
