"""What the tables have in common."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, String

metadata = MetaData()
Serial = BigInteger().with_variant(Integer, "sqlite")
DEFAULT_PROJECT = "default"
"""The project of all data from before there were projects, and of requests without a key of a project."""


def project_id() -> Column[str]:
    """The id of the project to which a row belongs. `store.confined` knows the tables that have it by its name."""
    return Column("project", String(64), nullable=False, server_default=DEFAULT_PROJECT)
