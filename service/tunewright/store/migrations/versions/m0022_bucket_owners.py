"""As whom this database owns prefixes of buckets."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0019"


def upgrade() -> None:
    op.create_table(
        "bucket_owners",
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("turn", sa.String(16), nullable=False),
        sa.Column("next_turn", sa.String(16), nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
