"""Bearer tokens of an OpenID Connect issuer (`--oidc-issuer`): JWTs, checked by PyJWT with the keys that it publishes.

Keys are fetched by the event loop, without blocking it, and all that is computed runs in threads. No token is logged or
quoted. Imported only where there is an issuer: importing PyJWT and its cryptography takes time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt
from jwt import PyJWK, PyJWKSet

from tunewright.api.http.threads import Threads
from tunewright.config.oidc import OidcOptions
from tunewright.errors import AuthenticationFailed, IssuerUnavailable

log = logging.getLogger("tunewright.api")

LEEWAY = 30.0
"""Seconds by which the issuer's clock may differ."""
LIFETIME = 600.0
"""Seconds after which keys are fetched again, while those that are known are used."""
KEPT = 86_400.0
"""Seconds for which keys are used while the issuer does not answer."""
FETCHED_EVERY, TRIED_EVERY = 30.0, 5.0
"""Seconds between two attempts to fetch keys, and the same where there are none yet."""
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_LARGEST, _MOST_KEYS = 2**18, 64
"""Bytes of an answer of the issuer, and keys in it."""
_MOST_KEPT = 4096
"""Tokens that are known to be valid."""
_LONGEST = 16 * 2**10
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by private keys alone: with HS256 the public key would be the secret, and `none` is no signature."""
_CLAIMS = ("exp", "iss", "aud", "sub")
_LONGEST_SUBJECT, _MOST_GROUPS = 255, 1000

_TOLD: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "The token has expired: get a new one.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another service: its audience is not one of this service.",
    jwt.InvalidIssuerError: "The token is of another issuer.",
    jwt.MissingRequiredClaimError: f"The token lacks a claim: it needs {', '.join(_CLAIMS)}.",
}


@dataclass(frozen=True)
class Identity:
    """Whom a token is for."""

    subject: str
    groups: frozenset[str]
    expires_at: float
    """Unix seconds."""


class Keys:
    """The issuer's keys, by their ids. Used from one event loop only. `clock`: monotonic seconds."""

    def __init__(self, issuer: str, url: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer, self._url, self._clock = issuer, url, clock
        self._keys: dict[str | None, PyJWK] = {}
        self._raw: Any = None
        self._fetched_at = self._tried_at = -KEPT
        self._fetching: asyncio.Task[None] | None = None
        self.version = 0
        """Changes with the keys."""

    async def find(self, id: str | None) -> PyJWK | None:
        """The key with this id, or the only one where a token names none. An unknown id has the keys fetched, if that
        was not tried just now. Raises IssuerUnavailable where no keys are known."""
        age = self._clock() - self._fetched_at
        if age >= KEPT:
            self._keys = {}
        if self._of(id) is None:
            await self._fetch()
        elif age >= LIFETIME:
            self._start()
        if not self._keys:
            raise IssuerUnavailable(
                "The issuer of tokens does not answer, and its keys are not known here: try again, or use an API key."
            )
        return self._of(id)

    def refresh(self) -> None:
        """Have old keys fetched again in the background, so that those that were withdrawn are noticed."""
        if self._clock() - self._fetched_at >= LIFETIME:
            self._start()

    def _of(self, id: str | None) -> PyJWK | None:
        if id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(id)

    async def _fetch(self) -> None:
        if fetching := self._start():
            await asyncio.shield(fetching)  # others wait for it too

    def _start(self) -> asyncio.Task[None] | None:
        """The attempt that is under way, or a new one; None where one was made just now."""
        if self._fetching is None:
            now = self._clock()
            if now - self._tried_at < (FETCHED_EVERY if self._keys else TRIED_EVERY):
                return None
            self._tried_at = now
            self._fetching = asyncio.create_task(self._try())
        return self._fetching

    async def _try(self) -> None:
        try:
            async with asyncio.timeout(2 * (_TIMEOUT.total or 0)):
                raw = await self._asked()
            if raw != self._raw or not self._keys:
                self._keys = await asyncio.to_thread(_keys_in, raw)
                self._raw = raw
                self.version += 1
            self._fetched_at = self._clock()
        except (aiohttp.ClientError, jwt.PyJWTError, ValueError, RecursionError, OSError) as error:
            log.warning(
                "the keys of %s could not be fetched: %s", self._issuer, error or type(error).__name__
            )
        finally:
            self._fetching = None

    async def _asked(self) -> Any:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:
            url = self._url
            if url is None:
                found = await _get(session, self._issuer.rstrip("/") + "/.well-known/openid-configuration")
                if found.get("issuer") != self._issuer:
                    raise ValueError("its configuration is that of another issuer (--oidc-issuer)")
                url = found.get("jwks_uri")
                if not isinstance(url, str) or not OidcOptions.is_address(url):
                    raise ValueError("its configuration has no jwks_uri over https")
            return await _get(session, url)


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"{url} answers {answer.status}")
        content = b""
        async for part in answer.content.iter_chunked(2**14):
            content += part
            if len(content) > _LARGEST:
                raise ValueError(f"{url} answers with more than {_LARGEST} bytes")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"{url} answers with something else than an object")
    return found


def _keys_in(raw: dict[str, Any]) -> dict[str | None, PyJWK]:
    """The public keys for signatures. Raises PyJWTError and ValueError."""
    listed = raw.get("keys")
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError(f"what it publishes is no list of at most {_MOST_KEYS} keys")
    found = PyJWKSet(listed).keys
    return {
        key.key_id: key
        for key in found
        if key.public_key_use in (None, "sig") and key.algorithm_name in _ALGORITHMS
    }


class Tokens:
    """Checks tokens. Those that were valid are kept by their hashes until they expire or the issuer's keys change."""

    def __init__(
        self,
        options: OidcOptions,
        clock: Callable[[], float] = time.time,
        keys: Keys | None = None,
    ) -> None:
        assert options.oidc_issuer is not None, "there is an issuer"
        self._issuer, self._audience = options.oidc_issuer, list(options.oidc_audience)
        self._claim = options.oidc_groups_claim
        self._clock = clock
        self._keys = keys or Keys(options.oidc_issuer, options.oidc_keys_url)
        self._threads = Threads("checks of tokens", 2, most=256, code="too_many_checks")
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._version = 0

    @staticmethod
    def is_token(given: bytes) -> bool:
        """Whether it has the form of a JWT, which no key has."""
        return given.count(b".") == 2

    async def identify(self, given: bytes) -> Identity:
        """Raises AuthenticationFailed for a token that is not valid, IssuerUnavailable, and TooManyRequests."""
        if len(given) > _LONGEST:
            raise _refused(f"The token is longer than {_LONGEST} bytes.")
        self._keys.refresh()
        self._forget_old()
        hash = hashlib.sha256(given).digest()
        found = self._known.get(hash)
        if found is None:
            found, version = await self._check(given.decode("latin-1"))
            self._forget_old()
            if version == self._version:  # else its key may have been withdrawn meanwhile
                self._known[hash] = found
            while len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(hash)
        if self._clock() >= found.expires_at + LEEWAY:
            self._known.pop(hash, None)
            raise _refused(_TOLD[jwt.ExpiredSignatureError])
        return found

    def _forget_old(self) -> None:
        if self._version != self._keys.version:
            self._version = self._keys.version
            self._known.clear()

    async def _check(self, token: str) -> tuple[Identity, int]:
        """The identity, and the version of the keys by which it is known."""
        try:
            header = await self._threads.run(jwt.get_unverified_header, token)
            if header.get("alg") not in _ALGORITHMS:
                raise _refused(
                    f"The token is signed by an algorithm that is not taken: {', '.join(_ALGORITHMS)} are."
                )
            key = await self._keys.find(header.get("kid"))
            if key is None:
                raise _refused("The token is signed by a key that its issuer does not publish.")
            version = self._keys.version
            return await self._threads.run(self._verify, token, key), version
        except jwt.PyJWTError as error:
            told = next(
                (text for kind, text in _TOLD.items() if isinstance(error, kind)), "The token is not valid."
            )
            raise _refused(told) from None  # the cause may quote it
        except (ValueError, TypeError, RecursionError):  # what PyJWT does not expect in a token
            raise _refused("The token is not valid.") from None

    def _verify(self, token: str, key: PyJWK) -> Identity:
        claims = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY,
            options={"require": list(_CLAIMS)},
        )
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise jwt.InvalidTokenError
        return Identity(subject, _groups(claims, self._claim), float(claims["exp"]))


def _groups(claims: Mapping[str, Any], claim: str) -> frozenset[str]:
    """The groups in the claim of this name, which may be one within another."""
    found: Any = claims.get(claim)
    if claim not in claims:
        found = claims
        for part in claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return frozenset(group for group in listed[:_MOST_GROUPS] if isinstance(group, str))


def _refused(message: str) -> AuthenticationFailed:
    return AuthenticationFailed(message, code="invalid_token")
