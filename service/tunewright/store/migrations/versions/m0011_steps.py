"""Jobs that follow another one, from whose product they go on."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pipeline", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("after", sa.String(64), nullable=True))
    op.create_index("ix_jobs_pipeline", "jobs", ["pipeline"])
