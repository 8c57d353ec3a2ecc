"""Until when keys are taken that were rotated, beside the end of their life, which their successors have too."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("replaced_until", sa.Float))
