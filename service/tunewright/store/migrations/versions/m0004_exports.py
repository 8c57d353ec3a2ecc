"""Exports: jobs of another kind, and the reports on their products."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(16), nullable=False, server_default="fine_tuning"))
    op.add_column("jobs", sa.Column("report", sa.JSON(), nullable=True))
