"""The options of the api: where it listens, its key, and what it takes from clients."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from tunewright.config.group import Group, check_hosts, split_commas
from tunewright.config.prices import Price, price_of
from tunewright.sizes import Size

_SHORTEST_KEY = 16


class ServerOptions(Group):
    """The address of the api, its key, and what it takes from clients."""

    host: str = Field("127.0.0.1", description="Address to listen on. Any but loopback needs an API key.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    api_key: SecretStr | None = Field(
        None, description="Bearer token that every request must carry. Better set as TUNEWRIGHT_API_KEY."
    )
    tls_cert: Path | None = Field(
        None,
        description="PEM file with the certificate of this service and those in between, for TLS. It is read again when"
        " it changes. Needs --tls-key. Default: no TLS.",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key, not encrypted.")
    judge_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="Base URL, such as https://api.example.com/v1, of an OpenAI-compatible service whose model may"
        " judge answers in evaluations, which are then sent there. Default: no judge but models that are served here.",
    )
    judge_model: str | None = Field(None, min_length=1, description="The model that judges there.")
    judge_api_key: SecretStr | None = Field(
        None, description="The key for it. Better set as TUNEWRIGHT_JUDGE_API_KEY."
    )
    metrics: Literal["off", "key", "open"] = Field(
        "key",
        description="Who may read /metrics, for Prometheus. key: whoever has the API key or the one of --metrics-key;"
        " open: everyone who reaches the service; off: nobody.",
    )
    metrics_key: SecretStr | None = Field(
        None,
        description="A key for /metrics alone, which Prometheus sends as its bearer token. Better set as"
        " TUNEWRIGHT_METRICS_KEY.",
    )
    metrics_names: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Models whose requests /metrics tells one by one, with the alias that was asked for; all further"
        " ones are told together.",
    )
    price: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="What a million tokens cost, MODEL=INPUT/OUTPUT in the currency of --currency, such as"
        " 'my-base=0.5/1.5'. MODEL may have * for any characters, and of several that suit a model the first holds;"
        " repeat for more (comma-separated in the variable). Default: tokens have no price.",
    )
    allowed_host: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A name of this service, beside loopback, that requests may have in Host and Origin where there is"
        " no API key; repeat for more (comma-separated in the variable). Default: none.",
    )
    api_standby: bool = Field(
        True,
        description="Whether a second process of the api is kept ready, which takes over when the api ends or hangs:"
        " within half a second instead of 3. It takes about 100 MB.",
    )
    max_upload: Size = Field(
        "512MiB", validate_default=True, description="Largest file that can be uploaded."
    )
    max_uploads: int = Field(8, ge=1, description="Files that can be uploaded at the same time.")
    max_requests: int = Field(
        1024, ge=1, description="Generations in flight for each engine; more are refused with 429."
    )
    request_timeout: float = Field(
        600.0, gt=0, description="Seconds a generation may take, from its request to its last byte."
    )
    max_generated_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that one request may ask for: its choices (`n`) times `max_tokens`. Default: 32 times the "
        "model's context.",
    )
    slow_reader_timeout: float = Field(
        60.0, gt=0, description="Seconds in which a client must take some of its answer, else it is cut off."
    )

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if not self.is_loopback and self.api_key is None:
            raise ValueError(
                f"listening on {self.host} needs an API key: set TUNEWRIGHT_API_KEY, or listen on 127.0.0.1"
            )
        if self.api_key is not None:
            _check_length(self.api_key.get_secret_value(), "API key", "TUNEWRIGHT_API_KEY")
        if self.metrics_key is not None:
            if self.metrics != "key":
                raise ValueError(
                    f"a metrics key is given, and --metrics {self.metrics} asks for none: leave one out"
                )
            _check_length(self.metrics_key.get_secret_value(), "metrics key", "TUNEWRIGHT_METRICS_KEY")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "--tls-key" if self.tls_key is None else "--tls-cert"
            raise ValueError(f"TLS needs a certificate and its key: set {missing} too")
        return self

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"

    _split_lists = field_validator("allowed_host", "price", mode="before")(split_commas)

    @field_validator("price")
    @classmethod
    def _check_prices(cls, value: list[str]) -> list[str]:
        for text in value:
            price_of(text)
        return value

    @property
    def prices(self) -> tuple[Price, ...]:
        return tuple(price_of(text) for text in self.price)

    _check_hosts = field_validator("allowed_host")(check_hosts)

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _check_length(key: str, what: str, variable: str) -> None:
    if not key:
        raise ValueError(f"the {what} is empty: unset {variable} or give it a value")
    if len(key) < _SHORTEST_KEY:
        raise ValueError(
            f"the {what} has {len(key)} characters, and could be guessed: it needs {_SHORTEST_KEY}. Make one with"
            " `openssl rand -hex 32`"
        )
