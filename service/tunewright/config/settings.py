"""Owns the settings: the only module that reads the environment.

`tunewright serve --option value` and `TUNEWRIGHT_OPTION=value` are the same thing. The supervisor hands the
resolved settings to its children as one JSON variable, so that no child can read them differently.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tunewright.config.group import Group
from tunewright.config.oidc import OidcOptions
from tunewright.config.options import (
    ExportOptions,
    JobOptions,
    ModelOptions,
    ParityOptions,
    ProcessOptions,
    RetentionOptions,
    ServingOptions,
)
from tunewright.config.server import ServerOptions
from tunewright.config.storage import StorageOptions
from tunewright.config.telemetry import ReportOptions, TelemetryOptions
from tunewright.config.webhooks import WebhookOptions

HANDOVER_VARIABLE = "TUNEWRIGHT_RESOLVED_SETTINGS"
HELP_ORDER = [
    "host", "port", "data_dir", "database_url", "artifacts", "artifacts_endpoint", "take_over_artifacts",
    "files_in_bucket", "base", "deployable",
    "api_key", "oidc_issuer", "oidc_audience", "oidc_grant", "oidc_groups_claim", "oidc_keys_url",
    "allowed_host", "tls_cert", "tls_key", "metrics", "metrics_key", "metrics_names", "judge_url", "judge_model",
    "judge_api_key", "device",
    "max_lora_rank", "max_loras", "max_cpu_loras", "load_on_demand", "drain_timeout", "kv_cache_memory",
    "gpu_memory_utilization", "tensor_parallel_size", "tool_call_parser", "trust_remote_code", "vllm_arg",
    "media_domain", "engine_start_timeout", "step_timeout", "hang_timeout", "api_standby", "fork_server_idle",
    "cpu_processes",
    "parity", "parity_rows",
    "max_merged_kl", "max_awq_kl",
    "max_upload", "adapter_root", "max_adapter_size", "max_hub_cache_size", "max_uploads", "max_requests",
    "max_queued_jobs", "python_graders", "eval_data", "wandb_api_key", "wandb_base_url",
    "report_to", "mlflow_tracking_uri",
    "price_per_hour", "price", "currency", "device_watts",
    "request_timeout", "max_generated_tokens", "slow_reader_timeout", "keep_files_days",
    "max_files_size", "keep_checkpoints_days", "max_checkpoints_size", "keep_unused_artifacts_days",
    "max_unused_artifacts_size", "max_artifact_cache_size", "max_file_cache_size", "max_token_cache_size",
    "keep_job_folders_days", "keep_events_days", "keep_jobs_days", "keep_deliveries_days", "keep_audit_days",
    "webhook_host", "webhook_timeout", "webhook_attempts", "webhook_retry_delay", "log_level",
    "log_format", "log_file", "otlp_endpoint",
]  # fmt: skip
"""All options, in the order in which `tunewright serve --help` lists them."""

_SECRETS = ("api_key", "metrics_key", "judge_api_key", "database_url", "wandb_api_key")
"""Options whose variable may name a file that has the value instead: TUNEWRIGHT_API_KEY_FILE."""

_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")

_WANDB_KEY = "WANDB_API_KEY"
"""Its own variable: jobs that are reported get it of `wandb_api_key`."""

_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OTLP_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""They may have the key of a receiver of traces."""
_AWS_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)  # fmt: skip

_G = TypeVar("_G", bound=Group)


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads the options of `_SECRETS` from the files that their variables name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value = _secret_file(field_name) if field_name in _SECRETS else None
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: _secret_file(name) for name in _SECRETS}
        return {name: value for name, value in found.items() if value is not None}


class Options(
    ServerOptions,
    OidcOptions,
    StorageOptions,
    ModelOptions,
    ServingOptions,
    JobOptions,
    ParityOptions,
    ExportOptions,
    RetentionOptions,
    WebhookOptions,
    ProcessOptions,
    TelemetryOptions,
    ReportOptions,
    BaseSettings,
):
    """Options of `tunewright serve`. Each is also read from TUNEWRIGHT_<NAME>."""

    model_config = SettingsConfigDict(
        env_prefix="TUNEWRIGHT_", cli_kebab_case=True, cli_hide_none_type=True, cli_avoid_json=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls)

    @model_validator(mode="after")
    def _check_key_beside_tokens(self) -> Self:
        if self.oidc_issuer is not None and self.api_key is None:
            raise ValueError(
                "an OIDC issuer needs an API key too, for when it does not answer: set TUNEWRIGHT_API_KEY"
            )
        return self


for _name in HELP_ORDER:
    Options.model_fields[_name] = Options.model_fields.pop(_name)


class Settings(BaseModel):
    """The resolved options, by group. `Settings(port=8001)` takes them by name, and the others from the environment."""

    model_config = ConfigDict(frozen=True)

    server: ServerOptions = ServerOptions()
    oidc: OidcOptions = OidcOptions()
    storage: StorageOptions = StorageOptions()
    models: ModelOptions = ModelOptions()
    serving: ServingOptions = ServingOptions()
    jobs: JobOptions = JobOptions()
    parity: ParityOptions = ParityOptions()
    exports: ExportOptions = ExportOptions()
    retention: RetentionOptions = RetentionOptions()
    webhooks: WebhookOptions = WebhookOptions()
    processes: ProcessOptions = ProcessOptions()
    telemetry: TelemetryOptions = TelemetryOptions()
    reports: ReportOptions = ReportOptions()

    def __init__(self, **options: Any) -> None:
        """Check the options together, and hand each to its group. Raises ValidationError."""
        flat = Options(**options)
        super().__init__(
            server=_part(ServerOptions, flat),
            oidc=_part(OidcOptions, flat),
            storage=_part(StorageOptions, flat),
            models=_part(ModelOptions, flat),
            serving=_part(ServingOptions, flat),
            jobs=_part(JobOptions, flat),
            parity=_part(ParityOptions, flat),
            exports=_part(ExportOptions, flat),
            retention=_part(RetentionOptions, flat),
            webhooks=_part(WebhookOptions, flat),
            processes=_part(ProcessOptions, flat),
            telemetry=_part(TelemetryOptions, flat),
            reports=_part(ReportOptions, flat),
        )

    def with_options(self, **changes: Any) -> Self:
        """These settings with other values of some options."""
        options = {option: value for _, group in self for option, value in group}
        return type(self)(**options | changes)

    def without_keys(self) -> Self:
        """These settings without keys, and without what needs one, for a process that serves nobody."""
        keys = dict.fromkeys(("api_key", "metrics_key", "judge_api_key", "wandb_api_key"))
        tokens = {
            name: field.get_default(call_default_factory=True)
            for name, field in OidcOptions.model_fields.items()
        }
        return self.with_options(host="127.0.0.1", **keys, **tokens)

    def handover(self) -> dict[str, str]:
        """The variable by which a child process gets exactly these settings."""
        groups = self.model_dump(mode="json").values()
        values = {option: value for group in groups for option, value in group.items()}
        keys = {
            "api_key": self.server.api_key,
            "metrics_key": self.server.metrics_key,
            "judge_api_key": self.server.judge_api_key,
            "wandb_api_key": self.jobs.wandb_api_key,
        }
        for name, key in keys.items():
            values[name] = key.get_secret_value() if key else None
        return {HANDOVER_VARIABLE: json.dumps(values)}


def _part(group: type[_G], flat: Options) -> _G:
    """One group of options that have been checked."""
    return group(**{option: getattr(flat, option) for option in group.model_fields})


def settings_from_command_line(argv: list[str]) -> Settings:
    """The settings that `tunewright serve` is started with. Raises ValidationError and SettingsError.

    Repeated --vllm-arg become one value here: pydantic's parser cuts lists at commas, which vLLM's JSON has.
    """
    words, rest = [], []
    remaining = iter(argv)
    for argument in remaining:
        if argument == "--vllm-arg":
            words.append(next(remaining, ""))
        elif argument.startswith("--vllm-arg="):
            words.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if words:
        rest.append("--vllm-arg=" + shlex.join(words))
    return Settings(**dict(CliApp.run(Options, cli_args=rest)))


def settings_in_child() -> Settings:
    """The settings of the supervisor that started this process. Raises KeyError when run by hand."""
    return Settings(**json.loads(os.environ[HANDOVER_VARIABLE]))


def child_environment(
    extra: dict[str, str] | None = None, *, with_settings: Settings | None = None
) -> dict[str, str]:
    """The environment for a child: this one without the service's secrets, plus `extra`. Only processes of the service
    itself, which get its settings, keep the tokens of other services: the hub's, since no other fetches from it, those
    of Weights & Biases and MLflow, of receivers of traces, and of the bucket of artifacts. Python imports nothing of
    the working directory, in the child and in what it starts. Unless the operator says otherwise, threads of OpenMP
    sleep while they wait: those that spin keep the cores from other processes (docs/decisions/0031)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNEWRIGHT_")}
    if with_settings is not None:
        environment |= with_settings.handover()
    else:
        for name in (*_HUB_TOKENS, _WANDB_KEY, *_MLFLOW_KEYS, *_OTLP_HEADERS, *_AWS_KEYS):
            environment.pop(name, None)
    return {"OMP_WAIT_POLICY": "PASSIVE"} | environment | {"PYTHONSAFEPATH": "1"} | (extra or {})


def mlflow_keys() -> dict[str, str]:
    """MLflow's own variables of the operator's credentials, for jobs that are reported there."""
    return {name: os.environ[name] for name in _MLFLOW_KEYS if os.environ.get(name)}


def otlp_headers() -> dict[str, str]:
    """The variables of what is sent to the receiver of traces, for engines."""
    return {name: os.environ[name] for name in _OTLP_HEADERS if os.environ.get(name)}


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES allows (none where it is empty or -1), or None where it is not set."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return None
    return [entry.strip() for entry in allowed.split(",") if entry.strip() and entry.strip() != "-1"]


def _secret_file(option: str) -> str | None:
    """The content of the file that an option's variable with _FILE names, or None. Raises SettingsError."""
    variable = f"TUNEWRIGHT_{option.upper()}"
    path = os.environ.get(f"{variable}_FILE")
    if not path:
        return None
    if variable in os.environ:
        raise SettingsError(f"{variable} and {variable}_FILE are both set: unset one of them")
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{variable}_FILE: {path} cannot be read: {why}") from error


def _secret(option: str) -> str | None:
    """The value of a secret option in the environment, or None. Raises SettingsError."""
    return os.environ.get(f"TUNEWRIGHT_{option.upper()}") or _secret_file(option)


def data_defaults() -> tuple[Path, str | None]:
    """Data folder and database URL that `serve` would use without options. Raises SettingsError."""
    return (
        Path(os.environ.get("TUNEWRIGHT_DATA_DIR") or StorageOptions.model_fields["data_dir"].default),
        _secret("database_url"),
    )


def artifacts_defaults() -> tuple[str | None, str | None]:
    """Where `serve` would store artifacts without options, and the address of that service."""
    return os.environ.get("TUNEWRIGHT_ARTIFACTS") or None, os.environ.get(
        "TUNEWRIGHT_ARTIFACTS_ENDPOINT"
    ) or None


def client_defaults() -> tuple[str, str | None]:
    """Address and key that the command line uses to reach a running service. Raises SettingsError."""
    return (
        os.environ.get("TUNEWRIGHT_BASE_URL", "http://127.0.0.1:8000"),
        _secret("api_key"),
    )
