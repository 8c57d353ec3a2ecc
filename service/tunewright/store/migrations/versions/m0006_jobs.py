"""The same columns for jobs of every kind: what differs is in `request`, `resolved` and `result`; inputs and devices
have separate tables; the phase is stored."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_GONE = (
    "model", "parent_sha256", "training_file", "validation_file", "suffix", "chat_template", "method", "tuning",
    "fine_tuned_model", "trained_tokens", "device",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("file_id", sa.String(64), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "role", "position"),
    )
    op.create_index("ix_job_inputs_file_id", "job_inputs", ["file_id"])
    op.create_index("ix_job_inputs_sha256", "job_inputs", ["sha256"])
    op.create_table(
        "job_devices",
        sa.Column("device", sa.String(32), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_index("ix_job_devices_job_id", "job_devices", ["job_id"])
    # Columns are added and dropped one by one: a copy of the table would lose its triggers, and the rows that refer to
    # it would go with the old one.
    op.add_column("jobs", sa.Column("phase", sa.String(16), nullable=False, server_default="prepare"))
    op.add_column("jobs", sa.Column("request", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("result", sa.JSON(), nullable=True))
    _move_rows()
    op.execute("ALTER TABLE jobs RENAME COLUMN job_metadata TO metadata")
    for column in _GONE:
        op.execute(f"ALTER TABLE jobs DROP COLUMN {column}")


def _move_rows() -> None:
    connection = op.get_bind()
    json_columns = [sa.column(name, sa.JSON()) for name in ("method", "tuning", "resolved")]
    names = (
        "id", "kind", "state", "model", "parent_sha256", "training_file", "validation_file", "suffix", "chat_template",
        "fine_tuned_model", "trained_tokens", "device",
    )  # fmt: skip
    old = sa.table("jobs", *(sa.column(name) for name in names), *json_columns)
    models = sa.table("models", sa.column("job_id"))
    with_products = set(connection.scalars(sa.select(models.c.job_id).where(models.c.job_id.is_not(None))))
    for row in connection.execute(sa.select(old)).mappings().all():
        is_export = row["kind"] == "export"
        values: dict[str, Any] = {
            "request": _export_request(row) if is_export else _fine_tuning_request(row),
            "resolved": None if is_export else row["resolved"],
            "result": _result(row, is_export),
            "phase": _phase(row, row["id"] in with_products),
        }
        encoded = {
            key: json.dumps(value) if isinstance(value, dict) else value for key, value in values.items()
        }
        is_postgres = connection.dialect.name == "postgresql"
        cast = {
            key: f"CAST(:{key} AS JSON)" if is_postgres and key != "phase" else f":{key}" for key in values
        }
        assignments = ", ".join(f"{key} = {cast[key]}" for key in values)
        connection.execute(
            sa.text(f"UPDATE jobs SET {assignments} WHERE id = :id"), {**encoded, "id": row["id"]}
        )
        _add_inputs(connection, row, is_export)
        if row["device"] is not None:
            connection.execute(
                sa.text("INSERT INTO job_devices (device, job_id) VALUES (:device, :id)"),
                {"device": row["device"], "id": row["id"]},
            )


def _fine_tuning_request(row: Any) -> dict[str, Any]:
    supervised = (row["method"] or {}).get("supervised") or {}
    return {
        "model": row["model"],
        "suffix": row["suffix"],
        "chat_template": row["chat_template"],
        "method": "supervised",
        "hyperparameters": supervised.get("hyperparameters") or {},
        "tuning": row["tuning"] or {},
    }


def _export_request(row: Any) -> dict[str, Any]:
    asked = dict(row["tuning"])
    asked["models"] = [{"model": one["model"], "weight": one["weight"]} for one in asked.get("models") or ()]
    return {**asked, "model": row["model"], "suffix": row["suffix"], "chat_template": row["chat_template"]}


def _result(row: Any, is_export: bool) -> dict[str, Any] | None:
    result = {"model": row["fine_tuned_model"]}
    if not is_export:
        result["trained_tokens"] = row["trained_tokens"]
    return result if any(value is not None for value in result.values()) else None


def _phase(row: Any, has_products: bool) -> str:
    if row["state"] in ("validating_files", "queued", "paused"):
        return "prepare"
    return "check" if has_products else "run"


def _add_inputs(connection: Any, row: Any, is_export: bool) -> None:
    inputs: list[tuple[str, str | None, str | None]] = []
    first = "calibration_file" if is_export else "training_file"
    inputs += [(role, id, None) for role, id in ((first, row["training_file"]),) if id]
    inputs += [("validation_file", row["validation_file"], None)] if row["validation_file"] else []
    named = [one["sha256"] for one in row["tuning"].get("models") or ()] if is_export else []
    parents = named or ([row["parent_sha256"]] if row["parent_sha256"] else [])
    inputs += [("source" if is_export else "parent", None, sha256) for sha256 in parents]
    positions: dict[str, int] = {}
    for role, file_id, sha256 in inputs:
        position = positions.get(role, 0)
        positions[role] = position + 1
        connection.execute(
            sa.text(
                "INSERT INTO job_inputs (job_id, role, position, file_id, sha256) "
                "VALUES (:job_id, :role, :position, :file_id, :sha256)"
            ),
            {"job_id": row["id"], "role": role, "position": position, "file_id": file_id, "sha256": sha256},
        )
