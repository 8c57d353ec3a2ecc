"""Files that a cleaning has made say what they were made of."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("files", sa.Column("lineage", sa.JSON(), nullable=True))
