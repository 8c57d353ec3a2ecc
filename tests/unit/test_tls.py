"""TLS of the public socket: who is answered, what files are refused, and a rotation while the service runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from test_cli import Run, run  # noqa: F401 (a fixture)

from certificates import write_certificate
from tunewright import serve
from tunewright.api.http import process
from tunewright.api.http.certificates import Certificate, CertificateUnusable
from tunewright.config import ServerOptions
from tunewright_client import APIConnectionError, Tunewright


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(*found)
    return found


@pytest.fixture
def port(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(process, "LOOKED_EVERY", 0.1)
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/large")
    def large() -> StreamingResponse:
        return StreamingResponse(b"x" * 2**16 for _ in range(64))

    web = process.web_server(app, ServerOptions(tls_cert=files[0], tls_key=files[1]))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    web.should_exit = True
    thread.join(20)


def name_of(port: int, with_sni: bool = True) -> str:
    """The common name of the certificate that is served now."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost" if with_sni else None) as connection,
    ):
        found = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    return str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_who_trusts_the_certificate_is_answered_and_nobody_without_tls(
    port: int, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (f"https://127.0.0.1:{port}", f"https://localhost:{port}"):
        with Tunewright(url, ca_file=files[0], max_retries=0) as client:
            assert client.health() == {"status": "ok"}
            large = client._http.client.get(f"{url}/large")
            assert len(large.content) == 2**22
    with Tunewright(f"https://127.0.0.1:{port}", max_retries=0) as stranger:
        with pytest.raises(APIConnectionError, match=r"(?i)certificate"):
            stranger.health()
        monkeypatch.setenv("TUNEWRIGHT_CA_FILE", str(files[0]))
    with Tunewright(f"https://127.0.0.1:{port}", max_retries=0) as by_environment:
        assert by_environment.health() == {"status": "ok"}
    with Tunewright(f"http://127.0.0.1:{port}", max_retries=0) as plain, pytest.raises(APIConnectionError):
        plain.health()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(files[0]))
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", port), 20) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secured,
        ):
            assert secured.version() == version.name.replace("v1_", "v1.")


def test_a_certificate_that_is_rotated_is_served_without_a_restart(
    port: int, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert name_of(port) == name_of(port, with_sni=False) == "first"
    with Tunewright(f"https://localhost:{port}", ca_file=files[0]) as kept:
        kept.health()
        files[1].write_text("half of a rotation")
        while "the earlier certificate stays" not in caplog.text:
            time.sleep(0.01)
        assert name_of(port) == "first"
        write_certificate(*files, name="second")
        while name_of(port) != "second":
            time.sleep(0.01)
        assert name_of(port, with_sni=False) == "second"
        kept.health()


def test_files_that_cannot_be_used_are_refused_at_the_start(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, locked, empty = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "empty.pem"
    write_certificate(tmp_path / "x.pem", other)
    write_certificate(tmp_path / "y.pem", locked, password=b"secret")
    empty.write_text("")
    for certificate, key, told in (
        (files[0], other, "not that of the certificate"),
        (tmp_path / "y.pem", locked, "encrypted"),
        (files[0], tmp_path / "missing", "No such file"),
        (empty, files[1], "no certificate and key in PEM"),
    ):
        with pytest.raises(CertificateUnusable, match=told):
            Certificate(certificate, key)
        arguments = [
            "--tls-cert",
            str(certificate),
            "--tls-key",
            str(key),
            "--data-dir",
            str(tmp_path / "data"),
        ]
        assert serve.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_a_certificate_is_read_again_only_where_its_files_have_changed(files: tuple[Path, Path]) -> None:
    certificate = Certificate(*files)
    first = certificate._current
    asyncio.run(certificate.renew())
    assert certificate._current is first
    write_certificate(*files)
    asyncio.run(certificate.renew())
    assert certificate._current is not first


def test_a_ca_file_that_cannot_be_used_is_told(files: tuple[Path, Path], tmp_path: Path, run: Run) -> None:  # noqa: F811
    files[0].write_text("nothing")
    for path, told in ((files[0], "no certificates in PEM"), (tmp_path / "missing", "No such file")):
        with pytest.raises(ValueError, match=told):
            Tunewright("https://localhost", ca_file=path)
        code, _, err = run("projects", "list", "--url", "https://localhost", "--ca-file", str(path))
        assert (code, "--ca-file" in err, told in err) == (2, True, True)
