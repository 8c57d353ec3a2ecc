"""An OpenID Connect issuer, for tests: it publishes keys over HTTP and signs tokens."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "tunewright"


class Issuer:
    """On loopback. `published`: its keys by their ids. `asked`: the paths that were asked for."""

    def __init__(self) -> None:
        self.published: dict[str, PrivateKeyTypes] = {"first": rsa.generate_private_key(65537, 2048)}
        self.asked: list[str] = []
        self.status = 200
        self.claims_to_be: str | None = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = json.dumps(issuer._answer(self.path)).encode()
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/realm"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _answer(self, path: str) -> dict[str, Any]:
        if path.endswith("/openid-configuration"):
            return {"issuer": self.claims_to_be or self.url, "jwks_uri": f"{self.url}/keys"}
        return {"keys": [self.jwk(id) for id in self.published]}

    def jwk(self, id: str) -> dict[str, Any]:
        key = self.published[id]
        if isinstance(key, rsa.RSAPrivateKey):
            return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": id, "use": "sig"}
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": id, "use": "sig"}

    def token(self, *groups: str, id: str = "first", **claims: Any) -> str:
        """For the user `alice`; a claim that is None is left out."""
        now = time.time()
        said = {
            "iss": self.url, "aud": AUDIENCE, "sub": "alice@corp.example", "iat": now, "exp": now + 600,
            "groups": list(groups), **claims,
        }  # fmt: skip
        key = self.published[id]
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            key,  # type: ignore[arg-type]
            algorithm,
            headers={"kid": id},
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
