"""The settings of the service, and all that it reads from the environment."""

from tunewright.config.oidc import OidcOptions
from tunewright.config.options import (
    EMBEDDED_BASE,
    RANKS,
    Base,
    ExportOptions,
    JobOptions,
    ModelOptions,
    ParityOptions,
    ProcessOptions,
    RetentionOptions,
    ServingOptions,
    embedded_base_path,
)
from tunewright.config.server import ServerOptions
from tunewright.config.settings import (
    HANDOVER_VARIABLE,
    Options,
    Settings,
    artifacts_defaults,
    child_environment,
    client_defaults,
    data_defaults,
    mlflow_keys,
    otlp_headers,
    settings_from_command_line,
    settings_in_child,
    visible_gpus,
)
from tunewright.config.storage import StorageOptions, database_url_in
from tunewright.config.telemetry import ReportOptions, TelemetryOptions
from tunewright.config.webhooks import WebhookOptions

__all__ = [
    "EMBEDDED_BASE",
    "HANDOVER_VARIABLE",
    "RANKS",
    "Base",
    "ExportOptions",
    "JobOptions",
    "ModelOptions",
    "OidcOptions",
    "Options",
    "ParityOptions",
    "ProcessOptions",
    "ReportOptions",
    "RetentionOptions",
    "ServerOptions",
    "ServingOptions",
    "Settings",
    "StorageOptions",
    "TelemetryOptions",
    "WebhookOptions",
    "artifacts_defaults",
    "child_environment",
    "client_defaults",
    "data_defaults",
    "database_url_in",
    "embedded_base_path",
    "mlflow_keys",
    "otlp_headers",
    "settings_from_command_line",
    "settings_in_child",
    "visible_gpus",
]
