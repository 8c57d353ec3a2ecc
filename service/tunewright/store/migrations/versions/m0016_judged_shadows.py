"""What the judge of an alias's guard has made of answers of its targets and of its shadow."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "alias_judgements",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("against", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("project", sa.String(64), nullable=False, server_default="default"),
    )
    op.create_index("ix_alias_judgements_alias", "alias_judgements", ["project", "alias", "seq"])
