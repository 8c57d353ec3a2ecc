"""The tables, as SQLAlchemy Core. `migrations/` builds them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from tunewright.store.audit_tables import audit_logs as audit_logs
from tunewright.store.columns import DEFAULT_PROJECT as DEFAULT_PROJECT
from tunewright.store.columns import Serial, project_id
from tunewright.store.columns import metadata as metadata
from tunewright.store.owner_tables import bucket_owners as bucket_owners
from tunewright.store.usage_tables import device_usage as device_usage
from tunewright.store.usage_tables import usage as usage
from tunewright.store.webhook_tables import webhook_deliveries as webhook_deliveries
from tunewright.store.webhook_tables import webhook_endpoints as webhook_endpoints
from tunewright.store.webhook_tables import webhook_events as webhook_events

projects = Table(
    "projects",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("archived_at", Float),  # its keys are refused since then
    Column("limits", JSON),  # `store.limits.Limits`, those that are set
)

project_bases = Table(
    "project_bases",  # the bases and deployables that a project may use; all where it has no row
    metadata,
    Column("project", String(64), primary_key=True),
    Column("base", Text, primary_key=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", String(64), index=True),  # null: an admin's key
    Column("name", Text, nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # sha256 of the key, which is stored nowhere
    Column("redacted", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("replaced_until", Float),  # since it was rotated: until when it is still taken
    Column("revoked_at", Float),
    Column("last_used_at", Float),
    Column("limits", JSON),
)

files = Table(
    "files",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=True),
    Column("status", String(16), nullable=False, server_default="processed"),
    Column("report", JSON),  # of the check of its rows (`rows.formats.FileReport`)
    Column("lineage", JSON),  # of what a cleaning or a synthesis has made (`store.file_lineages`)
    project_id(),
    Index("ix_files_project", "project", "seq"),
)

uploads = Table(
    "uploads",  # files that come in parts; the parts' bytes are in the workspace
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("filename", Text, nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("file_seconds", Integer),  # from when the file is complete until it expires
    Column("state", String(16), nullable=False),  # pending | completed | cancelled
    Column("file_id", String(64)),  # of a completed one
    Column("parts", JSON),  # the ids of which the file was made, in order
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("upload_id", String(64), ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False, server_default="fine_tuning"),
    Column("state", String(32), nullable=False, index=True),
    Column("phase", String(16), nullable=False, server_default="prepare"),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("base", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("metadata", JSON),
    # parsed by the models that the kind has registered (`jobs.kinds`)
    Column("request", JSON, nullable=False, server_default="{}"),
    Column("resolved", JSON),
    Column("result", JSON),
    Column("report", JSON),
    Column("error", JSON),
    Column("progress", JSON),
    Column("idempotency_key", String(255), unique=True),
    Column("fingerprint", String(64), nullable=False),
    Column("pipeline", String(64), index=True),  # the id of the first of several jobs that follow each other
    Column("after", String(64)),  # the id of the job that this one follows
    Column("api_key_id", String(64)),  # of the key that has created it
    # the scheduler's own columns
    Column("attempt", Integer, nullable=False, default=0),
    Column("events_offset", BigInteger, nullable=False, default=0),  # bytes of events.jsonl that were stored
    Column("last_step", Integer, nullable=False, default=0),  # the newest step in the events
    Column("claimed_at", Float),  # the last time
    project_id(),
    Index("ix_jobs_project", "project", "seq"),
)

job_inputs = Table(
    "job_inputs",  # files and weights, which are kept until the job has ended
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(32), primary_key=True),
    Column("position", Integer, primary_key=True),  # among the inputs of one role, from 0
    Column("file_id", String(64), index=True),  # either a file
    Column("sha256", String(64), index=True),  # or a model's weights
)

job_devices = Table(
    "job_devices",  # held from the claim until the job's process was seen to end
    metadata,
    Column("device", String(32), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("since", Float),  # from when on its time is not in `device_usage` yet
)

job_ends = Table(
    "job_ends",  # jobs that a user has asked to end with what they have
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("project", Text, nullable=False, server_default="default"),
    Column("at", Float, nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("level", String(16), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON),
    Index("ix_job_events_job", "job_id", "seq"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("job_id", "step", name="uq_checkpoints_job_step"),
)

models = Table(
    "models",  # adapters, and full models: made by jobs, or registered
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # adapter | full
    Column("sha256", String(64), nullable=False, index=True),
    Column("base", Text, nullable=False),
    Column("base_fingerprint", String(64), nullable=False),
    Column("job_id", String(64)),
    Column("checkpoint_step", Integer),
    Column("method", String(16), nullable=False),
    Column("rank", Integer),
    Column("alpha", Float),
    Column("target_modules", JSON),
    Column("chat_template", Text),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("desired", String(16), nullable=False),  # loaded | unloaded
    Column("source", String(16), nullable=False, server_default="job"),
    Column("lineage", JSON),
    Column("state", String(16), nullable=False, server_default="ready"),
    Column("parity", JSON),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("last_used_at", Float),
    project_id(),
    Index("ix_models_project", "project", "seq"),
)

engines = Table(
    "engines",
    metadata,
    Column("name", Text, primary_key=True),  # the name of the base or deployed model
    Column("state", String(16), nullable=False),
    Column("run", Integer, nullable=False, default=0),  # counts starts: what an earlier run held is gone
    Column("socket", Text),
    Column("reason", Text),
    Column("started_at", Float),
    Column("ready_at", Float),
    Column("info", JSON),  # max_model_len, max_lora_rank, device...
    Column("project", String(64)),  # of the deployment; null for a base, which all projects have
)

deployments = Table(
    "deployments",  # models that are served beside the bases; each has a row of `engines`, under the model's name
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("model", Text, nullable=False, unique=True),
    Column("asked", JSON, nullable=False),  # `engine` as requested
    Column("options", JSON, nullable=False),  # the resulting options
    Column("created_at", Float, nullable=False),
    Column("state", String(16), nullable=False),  # active | draining
    Column("drain_until", Float),  # when it is ended even if requests run
    Column("failures", Integer, nullable=False),  # starts in a row without ever being ready
    Column("was_ready", Boolean, nullable=False, server_default=false()),
    project_id(),
)

residency = Table(
    "residency",  # written by the engine worker alone
    metadata,
    Column("engine", Text, primary_key=True),
    Column("run", Integer, primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("error", Text),
    Column("at", Float, nullable=False),
    Column("number", Integer),  # vLLM's own, in its workers' memory
)

aliases = Table(
    "aliases",  # the current content of each alias
    metadata,
    Column("project", String(64), primary_key=True, server_default=DEFAULT_PROJECT),
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("targets", JSON, nullable=False),  # [{"model", "weight"}]
    Column("shadow", JSON),
    Column("guard", JSON),
    Column("require", JSON),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

alias_versions = Table(
    "alias_versions",  # their history: content, who changed them and why
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("alias", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("targets", JSON, nullable=False),
    Column("shadow", JSON),
    Column("guard", JSON),
    Column("require", JSON),
    Column("gate", JSON),  # what a requirement has found of new targets (`metrics.verdicts.Gate`)
    Column("at", Float, nullable=False),
    Column("who", Text),
    Column("why", Text, nullable=False),
    Column("rolled_back_to", Integer),  # the version that it restored
    project_id(),
    UniqueConstraint("project", "alias", "version", name="uq_alias_versions"),
)

shadow_answers = Table(
    "shadow_answers",  # answers of shadows to copies of requests
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("alias", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("answered_by", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("status", Integer, nullable=False),
    Column("request", JSON, nullable=False),
    Column("answer", JSON),
    project_id(),
    Index("ix_shadow_answers_alias", "project", "alias", "seq"),
)

alias_judgements = Table(
    "alias_judgements",  # what the judge of a guard has made of answers of targets and of the shadow, of one version
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("alias", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("model", Text, nullable=False),  # the target
    Column("against", Text, nullable=False),  # the shadow
    Column("outcome", String(8), nullable=False),  # of the target: win | tie | loss
    Column("at", Float, nullable=False),
    project_id(),
    Index("ix_alias_judgements_alias", "project", "alias", "seq"),
)

policies = Table(
    "policies",  # the weights with which a running job samples from the engine of its base (`store.policies`)
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("base_fingerprint", String(64), nullable=False),
    Column("at", Float, nullable=False),
)

ratings = Table(
    "ratings",  # what people have chosen of the pairs of an evaluation's answers
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("other", Integer, primary_key=True),  # the number of the model that it was compared with, from 1
    Column("row", Integer, primary_key=True),  # its place in the file, from 1
    Column("rater", String(128), primary_key=True),
    Column("outcome", String(8), nullable=False),  # of the evaluated model: win | tie | loss
    Column("at", Float, nullable=False),
)
