"""Projects and their API keys. Every row belongs to a project: those of earlier versions to `default`."""

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_LISTED = ("files", "jobs", "models")


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("seq", _serial(), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("archived_at", sa.Float(), nullable=True),
    )
    op.bulk_insert(projects, [{"id": "default", "name": "Default", "created_at": time.time()}])
    op.create_table(
        "api_keys",
        sa.Column("seq", _serial(), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("project", sa.String(64), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("redacted", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("last_used_at", sa.Float(), nullable=True),
    )
    op.create_index("ix_api_keys_project", "api_keys", ["project"])
    # one by one: a copy of `jobs` would lose its triggers, and the rows that refer to it would go with the old one
    for table in (*_LISTED, "deployments", "shadow_answers"):
        op.add_column(table, _project())
    for table in _LISTED:
        op.create_index(f"ix_{table}_project", table, ["project", "seq"])
    op.add_column("engines", sa.Column("project", sa.String(64), nullable=True))
    op.execute("UPDATE engines SET project = 'default' WHERE name IN (SELECT model FROM deployments)")
    op.drop_index("ix_shadow_answers_alias", "shadow_answers")
    op.create_index("ix_shadow_answers_alias", "shadow_answers", ["project", "alias", "seq"])
    with op.batch_alter_table("alias_versions") as batch:
        batch.add_column(_project())
        batch.drop_constraint("uq_alias_versions", type_="unique")
        batch.create_unique_constraint("uq_alias_versions", ["project", "alias", "version"])
    _key_aliases_by_project()


def _key_aliases_by_project() -> None:
    """The name of an alias is unique in its project: the primary key has both."""
    op.rename_table("aliases", "aliases_before")
    if op.get_bind().dialect.name == "postgresql":  # the new table's constraint has the name of the old one's
        op.execute("ALTER TABLE aliases_before DROP CONSTRAINT aliases_pkey")
    columns: list[sa.Column[Any]] = [
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("shadow", sa.JSON(), nullable=True),
        sa.Column("guard", sa.JSON(), nullable=True),
        sa.Column("require", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    ]
    names = ", ".join(f'"{column.name}"' for column in columns)
    project = sa.Column("project", sa.String(64), primary_key=True, server_default="default")
    op.create_table("aliases", project, *columns)
    op.execute(f"INSERT INTO aliases ({names}) SELECT {names} FROM aliases_before")
    op.drop_table("aliases_before")


def _project() -> sa.Column[str]:
    return sa.Column("project", sa.String(64), nullable=False, server_default="default")


def _serial() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
