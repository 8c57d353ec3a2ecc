"""Projects and their API keys. Times are Unix seconds."""

from .base import Wire


class Limits(Wire):
    """What a project or a key may have at most; None: any number.

    - tokens_per_minute: of prompts and answers together
    - concurrent_requests: generations in flight, streamed or not
    - gpu_hours_per_month: for which jobs have GPUs, in a calendar month (UTC)
    - queued_jobs, running_jobs, stored_bytes, adapters: of projects alone
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    gpu_hours_per_month: int | None = None
    queued_jobs: int | None = None
    running_jobs: int | None = None
    stored_bytes: int | None = None
    adapters: int | None = None


class Project(Wire):
    """A tenant. What belongs to it is not found by the keys of other projects.

    - status: active, or archived: then its keys are refused
    - bases: the bases and deployables that it may use; None: all
    """

    id: str
    object: str = "organization.project"
    name: str = ""
    created_at: int = 0
    archived_at: int | None = None
    status: str = ""
    limits: Limits = Limits()
    bases: tuple[str, ...] | None = None


class ApiKey(Wire):
    """A key of a project, without the key itself.

    - scopes: of read, infer, train, admin
    - last_used_at: recorded about once an hour
    """

    id: str
    object: str = "organization.project.api_key"
    name: str = ""
    project_id: str = ""
    redacted_value: str = ""
    limits: Limits = Limits()
    scopes: tuple[str, ...] = ()
    created_at: int = 0
    expires_at: int | None = None
    last_used_at: int | None = None


class NewApiKey(ApiKey):
    """A key that was just made: `value` is the key, which cannot be read again."""

    value: str


class AdminApiKey(Wire):
    """A key that may do everything in all projects, without the key itself."""

    id: str
    object: str = "organization.admin_api_key"
    name: str = ""
    redacted_value: str = ""
    created_at: int = 0
    expires_at: int | None = None
    last_used_at: int | None = None


class NewAdminApiKey(AdminApiKey):
    """A key that was just made: `value` is the key, which cannot be read again."""

    value: str
