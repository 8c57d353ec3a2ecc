"""The bases of projects, the keys of jobs, and the GPU time of each key."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "project_bases",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("base", sa.Text, primary_key=True),
    )
    op.add_column("jobs", sa.Column("api_key_id", sa.String(64)))
    # a table of its own, since SQLite cannot change a primary key
    op.create_table(
        "device_usage_by_key",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("api_key_id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.execute(
        "INSERT INTO device_usage_by_key (hour, project, api_key_id, model, kind, seconds) "
        "SELECT hour, project, '', model, kind, seconds FROM device_usage"
    )
    op.drop_table("device_usage")
    op.rename_table("device_usage_by_key", "device_usage")
