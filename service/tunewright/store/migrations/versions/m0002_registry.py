"""Adapters that were not trained here, and the lineage of every model."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_METRICS = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")


def upgrade() -> None:
    op.add_column("models", sa.Column("source", sa.String(16), nullable=False, server_default="job"))
    op.add_column("models", sa.Column("lineage", sa.JSON(), nullable=True))
    op.add_column("models", sa.Column("state", sa.String(16), nullable=False, server_default="ready"))
    op.add_column("models", sa.Column("parity", sa.JSON(), nullable=True))
    op.add_column("models", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("models", sa.Column("last_used_at", sa.Float(), nullable=True))
    _tell_lineage()


def _tell_lineage() -> None:
    """Fill in the lineage of existing models from the rows of their jobs."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.text(
            """SELECT models.seq, models.job_id, checkpoints.metrics, jobs.parent_sha256, jobs.seed,
                 jobs.training_file, training.sha256, jobs.validation_file, validation.sha256
               FROM models JOIN jobs ON jobs.id = models.job_id
               LEFT JOIN checkpoints ON checkpoints.model = models.name
               LEFT JOIN files AS training ON training.id = jobs.training_file
               LEFT JOIN files AS validation ON validation.id = jobs.validation_file"""
        )
    ).all()
    models = sa.table("models", sa.column("seq"), sa.column("lineage", sa.JSON()))
    for seq, job, metrics, parent, seed, *files in rows:
        training, training_sha256, validation, validation_sha256 = files
        lineage = {
            "parent_sha256": parent,
            "training_file": training,
            "training_sha256": training_sha256,
            "validation_file": validation,
            "validation_sha256": validation_sha256,
            "seed": seed,
            "metrics": _parsed(metrics) or _last_metrics(connection, job),
            "origin": None,
            "revision": None,
            "created_by": None,
        }
        connection.execute(models.update().where(models.c.seq == seq).values(lineage=lineage))


def _last_metrics(connection: sa.Connection, job: str) -> dict[str, float] | None:
    data = _parsed(
        connection.scalar(
            sa.text(
                "SELECT data FROM job_events WHERE job_id = :job AND type = 'metrics' ORDER BY seq DESC LIMIT 1"
            ),
            {"job": job},
        )
    )
    return {key: data[key] for key in _METRICS if data.get(key) is not None} if data else None


def _parsed(value: Any) -> Any:
    """A JSON value of a textual query: SQLite returns its text, PostgreSQL the parsed value."""
    return json.loads(value) if isinstance(value, str) else value
