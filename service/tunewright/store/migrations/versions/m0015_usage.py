"""What generations and jobs use, summed up, and the limits of projects and keys."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("api_key_id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "device_usage",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.add_column("job_devices", sa.Column("since", sa.Float))
    op.add_column("jobs", sa.Column("claimed_at", sa.Float))
    op.add_column("projects", sa.Column("limits", sa.JSON))
    op.add_column("api_keys", sa.Column("limits", sa.JSON))
