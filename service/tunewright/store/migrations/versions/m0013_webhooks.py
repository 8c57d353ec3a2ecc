"""Webhooks: their endpoints, the events that they are told of, and the deliveries of these."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        *_common(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event_types", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(32), nullable=False),
        sa.Column("old_salt", sa.String(64)),
        sa.Column("old_until", sa.Float),
    )
    op.create_table(
        "webhook_events",
        *_common(),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        *_common(),
        _reference("endpoint_id", "webhook_endpoints.id"),
        _reference("event_id", "webhook_events.id"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("sent_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
    )
    for column in ("endpoint_id", "event_id"):
        op.create_index(f"ix_webhook_deliveries_{column}", "webhook_deliveries", [column])
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["state", "due_at"])


def _common() -> tuple[sa.Column[int], sa.Column[str], sa.Column[str]]:
    return (
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("project", sa.Text, nullable=False, server_default="default"),
    )


def _reference(name: str, target: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), sa.ForeignKey(target, ondelete="CASCADE"), nullable=False)
