"""The certificate of the public socket (`--tls-cert`, `--tls-key`), read again when its files have changed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import NoReturn

from tunewright.config import ServerOptions

log = logging.getLogger("tunewright.api")

LOOKED_EVERY = 10.0
"""Seconds between two looks at the files."""


class CertificateUnusable(Exception):
    """The files are missing or no certificate with its key."""


class Certificate:
    """Used from one event loop. Raises CertificateUnusable where the files cannot be used at the start."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate, self.key = certificate, key
        self._seen = self._marks()
        self._current = self._loaded()

    @classmethod
    def of(cls, options: ServerOptions) -> Certificate | None:
        """None where the service has no TLS. Raises CertificateUnusable."""
        if options.tls_cert is None or options.tls_key is None:
            return None
        return cls(options.tls_cert, options.tls_key)

    def serve_with(self, context: ssl.SSLContext) -> None:
        """Have each handshake with this context use the present certificate. A context of its own for each one is never
        half changed, as one into which files are loaded anew can be."""

        def choose(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._current

        context.sni_callback = choose  # it is called without SNI too

    async def renew(self) -> None:
        """Read the files again where they have changed. Where they cannot be used, the certificate stays."""
        marks = await asyncio.to_thread(self._marks)
        if marks == self._seen:
            return
        try:
            self._current = await asyncio.to_thread(self._loaded)
            log.info("the certificate %s was read again", self.certificate)
        except CertificateUnusable as error:  # half of a rotation, perhaps: the other file changes too
            log.warning("the earlier certificate stays: %s", error)
        self._seen = marks

    def _marks(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes with the files."""
        return tuple(_mark(path) for path in (self.certificate, self.key))

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key, password=_refuse_encrypted)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise CertificateUnusable(
                f"--tls-cert {self.certificate} with --tls-key {self.key} cannot be used: {_told(error)}"
            ) from error
        return context


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _refuse_encrypted() -> NoReturn:
    raise ValueError("the key is encrypted, and nobody could be asked for its password: decrypt it")


def _told(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").lower()
        if "mismatch" in reason:
            return "the key is not that of the certificate"
        return f"they have no certificate and key in PEM ({reason or 'no PEM'})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
