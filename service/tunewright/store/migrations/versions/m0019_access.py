"""The bases of projects."""

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
