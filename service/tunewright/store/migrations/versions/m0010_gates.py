"""Aliases may require that a new target has passed an evaluation; their history has what was found."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("aliases", sa.Column("require", sa.JSON(), nullable=True))
    op.add_column("alias_versions", sa.Column("require", sa.JSON(), nullable=True))
    op.add_column("alias_versions", sa.Column("gate", sa.JSON(), nullable=True))
