"""Aliases may require that a new target has passed an evaluation; their history has what was found. Ratings of pairs of
answers by people."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("aliases", sa.Column("require", sa.JSON(), nullable=True))
    op.add_column("alias_versions", sa.Column("require", sa.JSON(), nullable=True))
    op.add_column("alias_versions", sa.Column("gate", sa.JSON(), nullable=True))
    op.create_table(
        "ratings",
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("other", sa.Integer, primary_key=True),
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("rater", sa.String(128), primary_key=True),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
