"""The options of bearer tokens that an OpenID Connect issuer signs, and what its groups may do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from tunewright.config.group import Group, split_commas

OPERATOR = "operator"
_SCOPES = ("read", "infer", "train", "admin")
"""Those of `store.keys.Scope`, which is above this package."""
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_HOST = r"(https://[^\s/?#@]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?)"
"""Keys that come over plain HTTP could be anybody's, but from this machine."""
_ISSUER, _KEYS = rf"^{_HOST}(/[^\s?#@]*)?$", rf"^{_HOST}(/[^\s#@]*)?$"


@dataclass(frozen=True)
class Grant:
    """What the members of a group may do."""

    group: str
    project: str | None
    """None: everything in all projects, as an admin's key."""
    scopes: frozenset[str] = frozenset(_SCOPES)


def grant_of(text: str) -> Grant:
    """GROUP=PROJECT:SCOPE+SCOPE, or GROUP=operator. Raises ValueError."""
    group, equals, allowed = text.rpartition("=")
    if group and allowed == OPERATOR:
        return Grant(group, None)
    project, colon, names = allowed.partition(":")
    scopes = frozenset(names.split("+"))
    if not (group and equals and colon and _PROJECT.fullmatch(project)) or not scopes <= set(_SCOPES):
        raise ValueError(
            f"{text!r} is no grant: write GROUP=PROJECT:SCOPE+SCOPE with scopes of {', '.join(_SCOPES)}, as "
            "search=proj-abc:read+infer, or GROUP=operator"
        )
    return Grant(group, project, scopes)


class OidcOptions(Group):
    """Whose tokens are taken, and for what."""

    oidc_issuer: str | None = Field(
        None,
        pattern=_ISSUER,
        description="Address of an OpenID Connect issuer, as the claim iss of its tokens has it, whose JWTs are taken"
        " as bearer tokens beside API keys. Needs --oidc-audience, --oidc-grant and an API key. Default: none.",
    )
    oidc_audience: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A value of the claim aud that tokens for this service have; repeat for more (comma-separated in"
        " the variable).",
    )
    oidc_grant: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="What a group may do: GROUP=PROJECT:SCOPE+SCOPE, such as 'search=proj-abc:read+infer', with the"
        " scopes read, infer, train and admin, or GROUP=operator for everything; repeat for more (comma-separated in"
        " the variable). Who is in none of the groups is refused.",
    )
    oidc_groups_claim: str = Field(
        "groups",
        min_length=1,
        max_length=128,
        description="The claim that has the groups of whom a token is for, a list or one text. One within another is"
        " named with dots, such as realm_access.roles.",
    )
    oidc_keys_url: str | None = Field(
        None,
        pattern=_KEYS,
        description="Address of the issuer's keys (its jwks_uri). Default: the one that its"
        " .well-known/openid-configuration names.",
    )

    _split_oidc = field_validator("oidc_audience", "oidc_grant", mode="before")(split_commas)

    @field_validator("oidc_grant")
    @classmethod
    def _check_grants(cls, value: list[str]) -> list[str]:
        for text in value:
            grant_of(text)
        return value

    @model_validator(mode="after")
    def _check_issuer(self) -> Self:
        if self.oidc_issuer is None:
            if self.oidc_audience or self.oidc_grant or self.oidc_keys_url:
                raise ValueError("options of OIDC are given without an issuer: set --oidc-issuer too")
        elif not self.oidc_audience or not self.oidc_grant:
            raise ValueError(
                "an OIDC issuer needs --oidc-audience, or it would take tokens that are for other services, and "
                "--oidc-grant, since without it nobody may do anything"
            )
        return self

    @staticmethod
    def is_address(text: str) -> bool:
        """Whether keys may be fetched from there."""
        return re.fullmatch(_KEYS, text) is not None

    @property
    def grants(self) -> tuple[Grant, ...]:
        return tuple(grant_of(text) for text in self.oidc_grant)
