"""Tokens of an OpenID Connect issuer: who may do what, what is refused, and what an issuer that fails changes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.testclient import TestClient

from fake_engine import gateway_for
from issuers import AUDIENCE, Issuer
from tunewright.api.http import tokens
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.http.tokens import FETCHED_EVERY, KEPT, LIFETIME, TRIED_EVERY, Keys, Tokens
from tunewright.config import Settings
from tunewright.config.oidc import OidcOptions
from tunewright.errors import AuthenticationFailed, IssuerUnavailable
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

OPERATOR = "the-operators-key-0123"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module")
def service(
    issuer: Issuer, tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[Any]:
    data = Workspace(tmp_path_factory.mktemp("tokens") / "data")
    data.create()
    path = data.path / "tunewright.db"
    path.write_bytes(migrated_database.read_bytes())
    store = Store.open(f"sqlite:///{path}")
    project, other = (store.projects.create(name).id for name in ("search", "other"))
    settings = Settings(
        data_dir=data.path, api_key=OPERATOR, oidc_issuer=issuer.url, oidc_audience=[AUDIENCE],
        oidc_grant=[f"readers={project}:read", f"/search={project}:infer+train", f"both={other}:read",
                    "nowhere=proj-gone:read", "ops=operator"],
    )  # fmt: skip
    store.engines.declare(["tunewright-tiny"])
    server, spec = build(settings, store)
    spec.gateway = gateway_for(store)
    server.app.state.context = ServiceContext(settings, store, data, spec.control)
    api = TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    yield api, store, project, other
    store.close()


def ask(api: TestClient, token: str, method: str = "GET", path: str = "/v1/files", **headers: str) -> Any:
    return api.request(method, path, json={}, headers={"Authorization": f"Bearer {token}", **headers})


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_groups_say_which_project_and_which_scopes(service: Any, issuer: Issuer) -> None:
    api, _, _, other = service
    reader, both = issuer.token("readers", "of no use"), issuer.token("both", "readers", "/search")
    assert ask(api, reader).status_code == 200
    assert code(ask(api, reader, "POST", "/v1/fine_tuning/jobs")) == (403, "insufficient_permissions")
    assert code(ask(api, reader, "POST", "/v1/tokenize")) == (403, "insufficient_permissions")
    assert code(ask(api, both, "POST", "/v1/fine_tuning/jobs"))[0] == 400, "the scopes of both of its groups"
    assert code(ask(api, both, "POST", "/v1/chat/completions"))[0] == 400, "the gateway takes tokens"
    own = f"/v1/organization/projects/{other}"
    assert ask(api, both, **{"OpenAI-Project": other}).status_code == 200
    assert code(ask(api, both, "POST", "/v1/fine_tuning/jobs", **{"OpenAI-Project": other}))[0] == 403
    assert code(ask(api, reader, **{"OpenAI-Project": other})) == (401, "mismatched_project")
    ops = issuer.token("ops")
    assert ask(api, ops, path=own).status_code == 200
    assert ask(api, ops, path="/v1/organization/projects").status_code == 200
    assert code(ask(api, reader, path="/v1/organization/projects"))[0] == 403


def test_whose_groups_may_do_nothing_is_refused(service: Any, issuer: Issuer) -> None:
    api, store, _, other = service
    for groups in ((), ("others",), ("nowhere",)):
        assert code(ask(api, issuer.token(*groups))) == (403, "insufficient_permissions")
    assert code(ask(api, issuer.token(groups={"readers": 1}))) == (403, "insufficient_permissions")
    assert ask(api, issuer.token(groups="readers")).status_code == 200
    store.projects.archive(other)
    assert code(ask(api, issuer.token("both"))) == (403, "insufficient_permissions")


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode()]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


def test_what_is_no_valid_token_is_refused_and_never_logged(
    service: Any, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api, now = service[0], time.time()
    public = issuer.published["first"].public_key()  # type: ignore[union-attr]
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[union-attr]
    good = issuer.token("readers")
    claims = jwt.decode(good, options={"verify_signature": False})
    head, _, signed = good.split(".")
    hs256 = unsigned({"alg": "HS256", "kid": "first"}, claims)
    mac = hmac.new(pem, hs256.rpartition(".")[0].encode(), hashlib.sha256).digest()
    strangers = Issuer()
    strangers.url = issuer.url
    bad = {
        "none": unsigned({"alg": "none"}, claims),
        "none, with a key": unsigned({"alg": "NONE", "kid": "first"}, claims),
        "the public key as a secret": unsigned({"alg": "HS256", "kid": "first"}, claims, mac),
        "another algorithm of the same key": jwt.encode(
            claims, issuer.published["first"], "PS256", headers={"kid": "first"}  # type: ignore[arg-type]
        ),
        "expired": issuer.token("readers", exp=now - 120),
        "without an end": issuer.token("readers", exp=None),
        "not valid yet": issuer.token("readers", nbf=now + 120),
        "of tomorrow": issuer.token("readers", iat=now + 86_400),
        "for another service": issuer.token("readers", aud="other"),
        "for nobody": issuer.token("readers", aud=None),
        "of another issuer": issuer.token("readers", iss="https://evil.example"),
        "of nobody": issuer.token("readers", sub=None),
        "another key of the same name": strangers.token("readers"),
        "changed": ".".join([head, unsigned({}, {**claims, "groups": ["ops"]}).split(".")[1], signed]),
        "cut": good[:-20],
        "a text": "a.b.c",
        "empty": "..",
        "odd header": unsigned({"alg": ["RS256"], "kid": {"a": 1}}, claims),
        "odd key": unsigned({"alg": "RS256", "kid": ["first"]}, claims),
        "long": good + "x" * 20_000,
    }  # fmt: skip
    strangers._server.server_close()
    for what, token in bad.items():
        assert code(ask(api, token)) == (401, "invalid_token"), what
        assert code(ask(api, token, "POST", "/v1/chat/completions")) == (401, "invalid_token"), what
    assert ask(api, good).status_code == 200, "the one that they were made of"
    assert ask(api, issuer.token("readers", exp=now - 20, nbf=now - 60)).status_code == 200, "clocks differ"
    assert code(ask(api, "no-token-at-all")) == (401, "invalid_api_key")
    for token in (good, *bad.values()):
        for part in (one for one in token.split(".") if len(one) > 20):
            assert part not in caplog.text


def test_the_audit_names_the_subject(service: Any, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright.audit")
    api, _, project, _ = service
    ask(api, issuer.token("/search"), "DELETE", "/v1/files/file-x")
    (line,) = (json.loads(one.getMessage()) for one in caplog.records if one.name == "tunewright.audit")
    assert (line["subject"], line["project"], line["status"]) == ("alice@corp.example", project, 404)
    assert line["key"] == "oidc-" + hashlib.sha256(b"alice@corp.example").hexdigest()[:24]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def checks(issuer: Issuer, clock: Clock, **options: Any) -> Tokens:
    given = OidcOptions(
        oidc_issuer=issuer.url, oidc_audience=[AUDIENCE], oidc_grant=["a=operator"], **options
    )
    return Tokens(given, keys=Keys(issuer.url, given.oidc_keys_url, clock))


async def identified(found: Tokens, token: str) -> bool:
    try:
        return bool(await found.identify(token.encode()))
    except AuthenticationFailed:
        return False


async def until_fetched(found: Tokens, version: int) -> None:
    while found._keys.version < version:
        await asyncio.sleep(0.005)


def test_keys_are_fetched_once_and_again_for_a_new_one_but_not_for_each_unknown_one() -> None:
    async def run() -> None:
        with Issuer() as issuer:
            clock = Clock()
            found = checks(issuer, clock)
            good = issuer.token("a")
            assert all(await asyncio.gather(*(identified(found, good) for _ in range(20))))
            assert len(issuer.asked) == 2, "the configuration and the keys"
            issuer.published["second"] = ec.generate_private_key(ec.SECP256R1())
            second = issuer.token("a", id="second")
            assert not await identified(found, second), "they were fetched just now"
            clock.now += FETCHED_EVERY
            assert await identified(found, second)
            issuer.published["gone"] = rsa.generate_private_key(65537, 2048)
            unknown = [issuer.token("a", id="gone", jti=str(number)) for number in range(20)]
            del issuer.published["gone"], issuer.published["first"]
            clock.now += FETCHED_EVERY
            before = len(issuer.asked)
            assert not any(await asyncio.gather(*(identified(found, token) for token in unknown)))
            assert len(issuer.asked) == before + 2
            assert not await identified(found, good), "its key was withdrawn"
            assert await identified(found, second)

    asyncio.run(run())


def test_an_issuer_that_fails_is_told_and_its_known_keys_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        with Issuer() as issuer:
            clock = Clock()
            found = checks(issuer, clock, oidc_keys_url=f"{issuer.url}/keys")
            issuer.status = 500
            good = issuer.token("a")
            for _ in range(3):
                with pytest.raises(IssuerUnavailable):
                    await found.identify(good.encode())
            assert len(issuer.asked) == 1
            issuer.status = 200
            clock.now += TRIED_EVERY
            assert await identified(found, good)
            issuer.status = 500
            clock.now += LIFETIME
            assert await identified(found, issuer.token("a", jti="2")), "while they are fetched again"
            while found._keys._fetching is not None:
                await asyncio.sleep(0.005)
            assert await identified(found, issuer.token("a", jti="3"))
            clock.now += KEPT
            with pytest.raises(IssuerUnavailable):
                await found.identify(issuer.token("a", jti="4").encode())
            issuer.status, issuer.claims_to_be = 200, "https://evil.example"
            with pytest.raises(IssuerUnavailable):
                await checks(issuer, clock).identify(good.encode())

    asyncio.run(run())
    assert "another issuer" in caplog.text


def test_an_issuer_that_does_not_answer_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_TIMEOUT", tokens.aiohttp.ClientTimeout(total=0.1))

    async def run() -> None:
        async def silent(reader: Any, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with Issuer() as other:
            token = other.token("a").encode()
        options = OidcOptions(oidc_issuer=url, oidc_audience=["a"], oidc_grant=["a=operator"])
        with pytest.raises(IssuerUnavailable):
            await Tokens(options).identify(token)
        server.close()

    asyncio.run(run())


def test_a_token_is_checked_once_and_kept_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = jwt.decode

    def counted(*args: Any, **how: Any) -> Any:
        decoded.append(args)
        return decode(*args, **how)

    monkeypatch.setattr(tokens.jwt, "decode", counted)
    monkeypatch.setattr(tokens, "_MOST_KEPT", 4)

    async def run() -> None:
        with Issuer() as issuer:
            found = checks(issuer, Clock())
            good = issuer.token("a", realm={"roles": ["x", 1]})
            for _ in range(5):
                assert await identified(found, good)
            assert len(decoded) == 1
            for number in range(6):
                assert await identified(found, issuer.token("a", jti=str(number)))
            assert len(found._known) == 4
            nested = checks(issuer, Clock(), oidc_groups_claim="realm.roles")
            assert (await nested.identify(good.encode())).groups == {"x"}
            now = time.time()
            found._clock = lambda: now + 700
            assert await identified(found, issuer.token("a", exp=now + 1000))
            last = issuer.token("a", exp=now + 600)
            assert not await identified(found, last)

    asyncio.run(run())
