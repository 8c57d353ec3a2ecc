"""The rows of files are checked when they were uploaded: those that are there are checked after the upgrade."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("files", sa.Column("status", sa.String(16), nullable=False, server_default="processed"))
    op.add_column("files", sa.Column("report", sa.JSON(), nullable=True))
    op.execute("UPDATE files SET status = 'uploaded' WHERE purpose = 'fine-tune'")
