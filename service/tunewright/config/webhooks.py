"""The options of webhooks: where they may be sent, and how often an event is tried."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from tunewright.config.group import Group, check_hosts, split_commas


class WebhookOptions(Group):
    """Where events may be sent, and how often each is tried."""

    webhook_host: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A host to which webhooks may be sent although its address is private or loopback, and also by"
        " http; repeat for more (comma-separated in the variable). Default: none, only https to public addresses.",
    )
    webhook_timeout: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Seconds that an endpoint of webhooks has to take an event and to answer.",
    )
    webhook_attempts: int = Field(
        15,
        ge=1,
        le=50,
        description="Attempts to deliver an event, after which it is a dead letter: 15 take about three days.",
    )
    webhook_retry_delay: float = Field(
        5.0,
        ge=0.01,
        le=3600,
        description="Seconds, about, from the first attempt to the second; each further wait is three times as long, up"
        " to 12 hours.",
    )

    _split_webhook_hosts = field_validator("webhook_host", mode="before")(split_commas)
    _check_webhook_hosts = field_validator("webhook_host")(check_hosts)
