"""The bases of projects, the keys of jobs, the GPU time of each key, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.create_table(
        "project_bases",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("base", sa.Text, primary_key=True),
    )
    op.add_column("jobs", sa.Column("api_key_id", sa.String(64)))
    # a table of its own, since SQLite cannot change a primary key
    op.create_table(
        "device_usage_by_key",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("api_key_id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.execute(
        "INSERT INTO device_usage_by_key (hour, project, api_key_id, model, kind, seconds) "
        "SELECT hour, project, '', model, kind, seconds FROM device_usage"
    )
    op.drop_table("device_usage")
    op.rename_table("device_usage_by_key", "device_usage")
    _create_audit_logs()


def _create_audit_logs() -> None:
    op.create_table(
        "audit_logs",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("effective_at", sa.Float, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("peer", sa.String(64)),
        sa.Column("request_id", sa.String(128)),
        sa.Column("method", sa.String(16)),
        sa.Column("path", sa.Text),
        sa.Column("status", sa.Integer),
        sa.Column("resource", sa.Text),
        sa.Column("details", sa.JSON),
    )
    op.create_index("ix_audit_logs_effective_at", "audit_logs", ["effective_at"])
    op.create_index("ix_audit_logs_project", "audit_logs", ["project", "seq"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              RAISE EXCEPTION 'the audit log cannot be changed' USING ERRCODE = 'check_violation';
            END $$"""
        )
        op.execute(
            """CREATE TRIGGER audit_changes BEFORE UPDATE ON audit_logs FOR EACH ROW
            EXECUTE FUNCTION refuse_audit_change()"""
        )
    else:
        op.execute(
            """CREATE TRIGGER audit_changes BEFORE UPDATE ON audit_logs
            BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END"""
        )
