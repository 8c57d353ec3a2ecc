"""Files that expire."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("files", sa.Column("expires_at", sa.Float(), nullable=True))
