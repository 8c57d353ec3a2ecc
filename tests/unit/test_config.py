"""Settings: one meaning on the command line and in the environment, and nothing unsafe by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from tunewright import serve
from tunewright.config import (
    EMBEDDED_BASE,
    HANDOVER_VARIABLE,
    Options,
    ServerOptions,
    Settings,
    child_environment,
    client_defaults,
    data_defaults,
    settings_from_command_line,
    settings_in_child,
)
from tunewright.config.settings import HELP_ORDER

KEY = "k" * 16
OPTIONS: dict[str, tuple[list[str], str, Any]] = {
    "host": (["--host", "::1"], "::1", "::1"),
    "judge_url": (["--judge-url", "https://a.example/v1"], "https://a.example/v1", "https://a.example/v1"),
    "judge_model": (["--judge-model", "m"], "m", "m"),
    "judge_api_key": (["--judge-api-key", KEY], KEY, KEY),
    "port": (["--port", "9000"], "9000", 9000),
    "data_dir": (["--data-dir", "/srv/t"], "/srv/t", Path("/srv/t")),
    "database_url": (["--database-url", "postgresql://x/y"], "postgresql://x/y", "postgresql://x/y"),
    "artifacts": (["--artifacts", "s3://b-1/p/q"], "s3://b-1/p/q", "s3://b-1/p/q"),
    "artifacts_endpoint": (["--artifacts-endpoint", "http://m:9000"], "http://m:9000", "http://m:9000"),
    "base": (["--base", "a=/x", "--base", "org/b"], "a=/x, org/b", ["a=/x", "org/b"]),
    "deployable": (["--deployable", "a=/x", "--deployable", "b=org/b"], "a=/x, b=org/b", ["a=/x", "b=org/b"]),
    "api_key": (["--api-key", KEY], KEY, KEY),
    "tls_cert": (["--tls-cert", "/c.pem"], "/c.pem", Path("/c.pem")),
    "tls_key": (["--tls-key", "/k.pem"], "/k.pem", Path("/k.pem")),
    "oidc_issuer": (["--oidc-issuer", "https://i.example/a"], "https://i.example/a", "https://i.example/a"),
    "oidc_audience": (["--oidc-audience", "t", "--oidc-audience", "u"], "t, u", ["t", "u"]),
    "oidc_grant": (["--oidc-grant", "a=p:read+infer", "--oidc-grant", "b=operator"],
        "a=p:read+infer, b=operator", ["a=p:read+infer", "b=operator"]),
    "oidc_groups_claim": (["--oidc-groups-claim", "realm.roles"], "realm.roles", "realm.roles"),
    "oidc_keys_url": (["--oidc-keys-url", "https://i.example/k?p=1"], "https://i.example/k?p=1",
        "https://i.example/k?p=1"),
    "metrics": (["--metrics", "off"], "off", "off"),
    "metrics_key": (["--metrics-key", KEY], KEY, KEY),
    "metrics_names": (["--metrics-names", "7"], "7", 7),
    "allowed_host": (
        ["--allowed-host", "a.example", "--allowed-host", "b"], "a.example, b", ["a.example", "b"]
    ),
    "device": (["--device", "cpu"], "cpu", "cpu"),
    "max_lora_rank": (["--max-lora-rank", "128"], "128", 128),
    "max_loras": (["--max-loras", "2"], "2", 2),
    "max_cpu_loras": (["--max-cpu-loras", "3"], "3", 3),
    "kv_cache_memory": (["--kv-cache-memory", "1GiB"], "1GiB", 2**30),
    "gpu_memory_utilization": (["--gpu-memory-utilization", "0.5"], "0.5", 0.5),
    "tensor_parallel_size": (["--tensor-parallel-size", "2"], "2", 2),
    "tool_call_parser": (["--tool-call-parser", "hermes"], "hermes", "hermes"),
    "trust_remote_code": (["--trust-remote-code", EMBEDDED_BASE], EMBEDDED_BASE, [EMBEDDED_BASE]),
    "vllm_arg": (
        ["--vllm-arg=--max-model-len=64", "--vllm-arg", "--rope", '--vllm-arg={"a": 1, "b": [2]}'],
        """--max-model-len=64 --rope '{"a": 1, "b": [2]}'""",
        ["--max-model-len=64", "--rope", '{"a": 1, "b": [2]}'],
    ),
    "media_domain": (["--media-domain", "A.example", "--media-domain", "b"], "a.example, b", ["a.example", "b"]),
    "engine_start_timeout": (["--engine-start-timeout", "5"], "5", 5.0),
    "step_timeout": (["--step-timeout", "60"], "60", 60.0),
    "api_standby": (["--api-standby", "false"], "false", False),
    "fork_server_idle": (["--fork-server-idle", "0"], "0", 0.0),
    "cpu_processes": (["--cpu-processes", "2"], "2", 2),
    "hang_timeout": (["--hang-timeout", "30"], "30", 30.0),
    "parity": (["--parity", "off"], "off", "off"),
    "parity_rows": (["--parity-rows", "3"], "3", 3),
    "max_merged_kl": (["--max-merged-kl", "0.01"], "0.01", 0.01),
    "max_awq_kl": (["--max-awq-kl", "0.5"], "0.5", 0.5),
    "load_on_demand": (["--load-on-demand", "false"], "false", False),
    "drain_timeout": (["--drain-timeout", "0"], "0", 0.0),
    "max_upload": (["--max-upload", "1MB"], "1MB", 10**6),
    "adapter_root": (["--adapter-root", "/a", "--adapter-root", "/b c"], "/a, /b c", ["/a", "/b c"]),
    "max_adapter_size": (["--max-adapter-size", "1GB"], "1GB", 10**9),
    "max_hub_cache_size": (["--max-hub-cache-size", "1GB"], "1GB", 10**9),
    "max_uploads": (["--max-uploads", "3"], "3", 3),
    "max_requests": (["--max-requests", "64"], "64", 64),
    "max_queued_jobs": (["--max-queued-jobs", "10"], "10", 10),
    "python_graders": (["--python-graders", "sandboxed"], "sandboxed", "sandboxed"),
    "eval_data": (["--eval-data", "/questions"], "/questions", Path("/questions")),
    "wandb_api_key": (["--wandb-api-key", KEY], KEY, KEY),
    "report_to": (["--report-to", "tensorboard"], "tensorboard", ["tensorboard"]),
    "mlflow_tracking_uri": (["--mlflow-tracking-uri", "file:/r"], "file:/r", "file:/r"),
    "log_format": (["--log-format", "json"], "json", "json"),
    "log_file": (["--log-file", "/var/log/t.log"], "/var/log/t.log", Path("/var/log/t.log")),
    "otlp_endpoint": (["--otlp-endpoint", "http://c:4318"], "http://c:4318", "http://c:4318"),
    "wandb_base_url": (["--wandb-base-url", "https://w.example"], "https://w.example", "https://w.example"),
    "price_per_hour": (["--price-per-hour", "2.5"], "2.5", 2.5),
    "price": (["--price", "m=0.5/1", "--price", "ft:*=1/2"], "m=0.5/1, ft:*=1/2", ["m=0.5/1", "ft:*=1/2"]),
    "currency": (["--currency", "EUR"], "EUR", "EUR"),
    "device_watts": (["--device-watts", "350"], "350", 350.0),
    "request_timeout": (["--request-timeout", "60.5"], "60.5", 60.5),
    "max_generated_tokens": (["--max-generated-tokens", "4096"], "4096", 4096),
    "slow_reader_timeout": (["--slow-reader-timeout", "5"], "5", 5.0),
    "keep_files_days": (["--keep-files-days", "30"], "30", 30.0),
    "max_files_size": (["--max-files-size", "1GB"], "1GB", 10**9),
    "keep_checkpoints_days": (["--keep-checkpoints-days", "0.5"], "0.5", 0.5),
    "max_checkpoints_size": (["--max-checkpoints-size", "2GiB"], "2GiB", 2**31),
    "keep_unused_artifacts_days": (["--keep-unused-artifacts-days", "7"], "7", 7.0),
    "max_unused_artifacts_size": (["--max-unused-artifacts-size", "1MiB"], "1MiB", 2**20),
    "take_over_artifacts": (["--take-over-artifacts", "unmarked"], "unmarked", "unmarked"),
    "files_in_bucket": (["--files-in-bucket", "true"], "true", True),
    "max_file_cache_size": (["--max-file-cache-size", "1TiB"], "1TiB", 2**40),
    "max_artifact_cache_size": (["--max-artifact-cache-size", "1TiB"], "1TiB", 2**40),
    "max_token_cache_size": (["--max-token-cache-size", "1MiB"], "1MiB", 2**20),
    "keep_job_folders_days": (["--keep-job-folders-days", "90"], "90", 90.0),
    "keep_events_days": (["--keep-events-days", "30"], "30", 30.0),
    "keep_jobs_days": (["--keep-jobs-days", "365"], "365", 365.0),
    "keep_deliveries_days": (["--keep-deliveries-days", "3"], "3", 3.0),
    "keep_audit_days": (["--keep-audit-days", "365"], "365", 365.0),
    "webhook_host": (["--webhook-host", "a.example", "--webhook-host", "127.0.0.1"],
        "a.example, 127.0.0.1", ["a.example", "127.0.0.1"]),
    "webhook_timeout": (["--webhook-timeout", "2.5"], "2.5", 2.5),
    "webhook_attempts": (["--webhook-attempts", "4"], "4", 4),
    "webhook_retry_delay": (["--webhook-retry-delay", "0.5"], "0.5", 0.5),
    "log_level": (["--log-level", "debug"], "debug", "debug"),
}  # fmt: skip
OIDC = {
    "TUNEWRIGHT_API_KEY": KEY, "TUNEWRIGHT_OIDC_ISSUER": "https://i.example", "TUNEWRIGHT_OIDC_AUDIENCE": "a",
    "TUNEWRIGHT_OIDC_GRANT": "g=operator",
}  # fmt: skip
"""Options that are refused without each other."""
SECRET_KEYS = ("metrics_key", "api_key", "judge_api_key", "wandb_api_key")


def plain(settings: Settings, name: str) -> Any:
    if name == "vllm_arg":
        return settings.serving.vllm_args
    (value,) = (getattr(group, name) for _, group in settings if name in type(group).model_fields)
    return value.get_secret_value() if name in SECRET_KEYS and value else value


def test_every_option_is_listed_here() -> None:
    assert set(OPTIONS) == set(Options.model_fields)


def test_every_option_has_its_place_in_the_help_and_one_group() -> None:
    grouped = [name for _, group in Settings() for name in type(group).model_fields]
    assert sorted(grouped) == sorted(HELP_ORDER)
    assert list(Options.model_fields) == HELP_ORDER


def test_an_option_is_in_its_group_alone() -> None:
    settings = Settings(port=9000, keep_files_days=2)
    assert (settings.server.port, settings.retention.keep_files_days) == (9000, 2)
    assert not hasattr(settings, "port")
    assert not hasattr(settings.server, "keep_files_days")


def test_a_group_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_PORT", "9001")
    assert ServerOptions().port == 8000
    assert Settings().server.port == 9001


def test_settings_with_other_options_keep_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(port=9001, api_key=KEY, max_upload="1MB")
    monkeypatch.setenv("TUNEWRIGHT_PORT", "1")
    assert settings.with_options(data_dir="/srv") == Settings(
        port=9001, api_key=KEY, max_upload="1MB", data_dir="/srv"
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_and_its_variable_mean_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, variable, value = OPTIONS[name]
    needed = {
        "files_in_bucket": {"TUNEWRIGHT_ARTIFACTS": "s3://b-1"},
        "oidc_": OIDC, "tls_": {"TUNEWRIGHT_TLS_CERT": "/a", "TUNEWRIGHT_TLS_KEY": "/a"},
    }  # fmt: skip
    for prefix, others in needed.items():
        for other, given in others.items() if name.startswith(prefix) else ():
            monkeypatch.setenv(other, given)
    assert plain(settings_from_command_line(arguments), name) == value
    assert plain(settings_from_command_line([]), name) != value
    monkeypatch.setenv(f"TUNEWRIGHT_{name.upper()}", variable)
    assert plain(settings_from_command_line([]), name) == value


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_PORT", "9001")
    assert settings_from_command_line(["--port", "9002"]).server.port == 9002


def test_the_defaults_serve_the_embedded_base_on_loopback() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port, settings.server.api_key) == ("127.0.0.1", 8000, None)
    assert [base.name for base in settings.models.bases] == [EMBEDDED_BASE]
    assert settings.storage.resolved_database_url == "sqlite:///tunewright-data/tunewright.db"


# listening


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert Settings(host=host).server.is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_anything_else_needs_one(host: str) -> None:
    with pytest.raises(ValidationError, match="needs an API key"):
        Settings(host=host)
    assert not Settings(host=host, api_key=KEY).server.is_loopback


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(ValidationError, match="the API key is empty"):
        Settings(api_key="")
    with pytest.raises(ValidationError, match="the API key is empty"):
        Settings(host="0.0.0.0", api_key="")


def test_a_key_that_could_be_guessed_is_refused_with_how_to_make_one() -> None:
    with pytest.raises(ValidationError, match=r"has 15 characters.*openssl rand -hex 32"):
        Settings(api_key="k" * 15)
    assert Settings(api_key="k" * 16).server.api_key is not None


@pytest.mark.parametrize("host", ["http://a.example", "a.example:8000", "a b", "", "*", "a/b", "é"])
def test_what_is_not_the_name_of_a_host_is_refused(host: str) -> None:
    for option in ("allowed_host", "media_domain"):
        with pytest.raises(ValidationError, match="not the name of a host"):
            Settings(**{option: [host]})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("artifacts", "/srv/artifacts"), ("artifacts", "s3://b"), ("artifacts", "s3://bucket/../x"),
        ("artifacts", "s3://key:secret@bucket/x"), ("artifacts", "s3://bucket/a b"),
        ("artifacts_endpoint", "http://key:secret@s3.example"), ("artifacts_endpoint", "s3.example:9000"),
    ],
)  # fmt: skip
def test_what_is_no_place_of_artifacts_is_refused(option: str, value: str) -> None:
    with pytest.raises(ValidationError, match=option):
        Settings(**{option: value})


def test_an_empty_place_of_artifacts_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ARTIFACTS", "")
    monkeypatch.setenv("TUNEWRIGHT_ARTIFACTS_ENDPOINT", "")
    assert Settings().storage.artifacts is None


@pytest.mark.parametrize(
    ("name", "value"), [("api_key", KEY), ("database_url", "postgresql://user:secret@x/y")]
)
def test_a_secret_may_be_in_a_file(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(value + "\n")
    monkeypatch.setenv(f"TUNEWRIGHT_{name.upper()}_FILE", str(file))
    assert plain(settings_from_command_line([]), name) == value
    assert value in (client_defaults()[1], data_defaults()[1])
    other = OPTIONS[name][0]
    assert plain(settings_from_command_line(other), name) == other[1], "the command line wins"
    monkeypatch.setenv(f"TUNEWRIGHT_{name.upper()}", value)
    with pytest.raises(SettingsError, match="are both set"):
        settings_from_command_line([])


def test_a_secret_in_a_file_that_cannot_be_read_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEY_FILE", str(tmp_path / "missing"))
    assert serve.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TUNEWRIGHT_API_KEY_FILE" in line
    assert "No such file" in line
    (tmp_path / "missing").write_text("")
    with pytest.raises(ValidationError, match="the API key is empty"):
        settings_from_command_line([])


def test_the_key_is_not_printed() -> None:
    settings = Settings(api_key="very-secret-indeed")
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in str(settings.model_dump(mode="json"))


# TLS


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValidationError, match="set --tls-key too"):
        Settings(tls_cert="/c.pem")
    with pytest.raises(ValidationError, match="set --tls-cert too"):
        Settings(tls_key="/k.pem")
    assert Settings(tls_cert="/c.pem", tls_key="/k.pem").server.scheme == "https"


# tokens


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"api_key": None}, "needs an API key too"),
        ({"oidc_issuer": None}, "without an issuer"),
        ({"oidc_audience": []}, "needs --oidc-audience"),
        ({"oidc_grant": []}, "needs --oidc-audience"),
        *[({"oidc_grant": [grant]}, "is no grant") for grant in (
          "a", "a=", "=p:read", "a=p", "a=p:write", "a=p:", "a=b c:read")],
        *[({"oidc_issuer": url}, "oidc_issuer") for url in ("http://i.example", "http://localhost.example", "https://a@b",
          "https://i.example?x", "file:///keys")],
        ({"oidc_keys_url": "http://i.example/keys"}, "oidc_keys_url"),
    ],
)  # fmt: skip
def test_an_issuer_that_would_be_unsafe_or_of_no_use_is_refused(changed: dict[str, Any], told: str) -> None:
    whole = {
        "api_key": KEY, "oidc_issuer": "https://i.example", "oidc_audience": ["a"],
        "oidc_grant": ["a=b=c=p-1:read+infer"],
    }  # fmt: skip
    (grant,) = Settings(**whole).oidc.grants
    assert (grant.group, grant.project, grant.scopes) == ("a=b=c", "p-1", {"read", "infer"})
    with pytest.raises(ValidationError, match=told):
        Settings(**{**whole, **changed})


def test_settings_without_keys_are_whole() -> None:
    settings = Settings(
        host="0.0.0.0", api_key=KEY, metrics_key=KEY, port=9000, oidc_issuer="https://i.example",
        oidc_audience=["a"], oidc_grant=["g=operator"], oidc_groups_claim="roles",
    )  # fmt: skip
    assert settings.without_keys() == Settings(port=9000)
    assert KEY not in str(settings.without_keys().handover())


# values


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("2GB", 2 * 10**9),
        ("1.5 KiB", 1536),
        ("7", 7),
        (7, 7),
        ("1b", 1),
        ("512MB", 512 * 10**6),
        ("512mib", 512 * 2**20),
        (".5gib", 2**29),
        (" 1tib ", 2**40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    settings = Settings(max_upload=text)
    assert settings.server.max_upload == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", -1, "1 XB", "1e9", "1,5GB", "0x10", "1GB 1", "9" * 5000])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ValidationError, match="is not a size; write it like 512MiB") as refused:
        Settings(max_upload=text)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("values", [{"max_upload": "big"}, {"kv_cache_memory": "1 apple"}])
def test_a_wrong_size_is_refused_at_the_start(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is not a size"):
        Settings(**values)


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256, 320, 512])
def test_ranks_that_vllm_serves(rank: int) -> None:
    assert Settings(max_lora_rank=rank).serving.max_lora_rank == rank


def test_an_argument_of_vllm_that_is_two_is_refused_with_the_right_form() -> None:
    """vLLM would take it for a file of options, or leave it out without a word."""
    wrong = "--vllm-arg=--cudagraph-capture-sizes 1 2"
    with pytest.raises(
        ValidationError, match="--vllm-arg=--cudagraph-capture-sizes --vllm-arg=1 --vllm-arg=2"
    ):
        settings_from_command_line([wrong])
    assert Settings(vllm_arg="'--a=b c'").serving.vllm_args == ["--a=b c"], "values have spaces"


@pytest.mark.parametrize("rank", [0, 1, 7, 24, 1024])
def test_other_ranks_are_refused(rank: int) -> None:
    with pytest.raises(ValidationError, match="vLLM serves maximum ranks of"):
        Settings(max_lora_rank=rank)


@pytest.mark.parametrize(
    "values",
    [{"port": 0}, {"port": 65536}, {"max_loras": 0}, {"gpu_memory_utilization": 1}, {"device": "tpu"}],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


# bases


def test_a_base_is_named_by_its_folder_or_its_hub_id(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    settings = Settings(base=[f"{tmp_path}/my-model/", "org/model", "short=org/other"])
    assert [(base.name, base.source) for base in settings.models.bases] == [
        ("my-model", f"{tmp_path}/my-model/"),
        ("org/model", "org/model"),
        ("short", "org/other"),
    ]
    assert settings.models.bases[0].path == tmp_path / "my-model"
    assert settings.models.bases[1].path is None


@pytest.mark.parametrize("name", ["a b", "ft:x", "-a", "", "a\n", "é", "a" * 129])
def test_names_that_no_base_can_have(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot name a base"):
        Settings(base=[f"{name}=/x"])


def test_two_bases_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two of --base and --deployable are named 'a'"):
        Settings(base=["a=/x", "a=/y"])


def test_deployables_have_names_of_their_own() -> None:
    with pytest.raises(ValidationError, match="two of --base and --deployable are named 'a'"):
        Settings(base=["a=/x"], deployable=["a=/y"])
    with pytest.raises(ValidationError, match="write NAME=PATH_OR_HUB_ID"):
        Settings(deployable=["/y"])
    assert (
        Settings(base=["a=/x"], deployable=["b=/y"], trust_remote_code=["b"]).models.deployables[0].name
        == "b"
    )


def test_only_named_bases_are_trusted() -> None:
    with pytest.raises(ValidationError, match="names 'other', which is not a base"):
        Settings(base=["a=/x"], trust_remote_code=["other"])


# children


def test_a_child_gets_exactly_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        port=9999,
        api_key=KEY,
        base=["a=/x,y", "b=/z"],
        vllm_arg="'--x=a b' -y",
        data_dir="/srv/é",
        host="0.0.0.0",
    )
    environment = child_environment(with_settings=settings)
    monkeypatch.setenv(HANDOVER_VARIABLE, environment[HANDOVER_VARIABLE])
    monkeypatch.setenv("TUNEWRIGHT_PORT", "1")
    received = settings_in_child()
    assert received == settings
    assert received.server.api_key is not None
    assert received.server.api_key.get_secret_value() == KEY


def test_children_that_run_models_get_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "very-secret-indeed")
    monkeypatch.setenv(HANDOVER_VARIABLE, json.dumps({"api_key": "very-secret"}))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "very-secret-too")
    monkeypatch.setenv("HOME", "/home/x")
    environment = child_environment({"CUDA_VISIBLE_DEVICES": "1"})
    assert not [name for name in environment if name.startswith("TUNEWRIGHT_")]
    assert "very-secret" not in str(environment)
    assert (environment["HOME"], environment["CUDA_VISIBLE_DEVICES"]) == ("/home/x", "1")


def test_service_processes_get_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "for the hub or the bucket")
        assert child_environment(with_settings=Settings())[name] == "for the hub or the bucket"
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "very-secret-indeed")
    environment = child_environment(with_settings=Settings())
    assert [name for name in environment if name.startswith("TUNEWRIGHT_")] == [HANDOVER_VARIABLE]


def test_only_config_reads_the_services_variables() -> None:
    """No other module reads TUNEWRIGHT_ variables (but for the lifeline's)."""
    package = Path(serve.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ('environ["TUNEWRIGHT', 'get("TUNEWRIGHT', "getenv("))
    }
    assert readers <= {"config/settings.py"}


# the command


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-lora-rank", "7"], "--max-lora-rank: vLLM serves maximum ranks of"),
        (["--host", "0.0.0.0"], "listening on 0.0.0.0 needs an API key"),
        (["--port", "x"], "--port: "),
        (["--base", "a b=/x"], "'a b' cannot name a base"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("tunewright serve: ")
    assert line in printed
    assert printed.count("\n") == 1


def test_an_unknown_option_is_refused() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from tunewright import serve; sys.exit(serve.main(['--prot', '1']))",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.returncode == 2
    assert "--prot" in done.stderr


def test_threads_of_children_sleep_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert child_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert child_environment()["OMP_WAIT_POLICY"] == "ACTIVE"
