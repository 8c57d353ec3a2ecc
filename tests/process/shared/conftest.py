"""Tests of one service with a stand-in for vLLM, which starts before the first of them and ends after the last. It has
TLS, so that all that these tests do is done through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.engine.conftest import Service
from tests.without_vllm import start_without_vllm, wait_engine

from certificates import write_certificate


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Beside its data folder are the certificate and the key that it reads, and `next.pem` and `next.key`, which its
    clients trust too."""
    folder = tmp_path_factory.mktemp("process")
    certificate, key, following = folder / "cert.pem", folder / "key.pem", folder / "next.pem"
    write_certificate(certificate, key)
    write_certificate(following, folder / "next.key", name="second")
    trusted = folder / "trusted.pem"
    trusted.write_bytes(certificate.read_bytes() + following.read_bytes())
    # the grader of a job in test_grpo_service has a program
    # receivers in test_webhooks_service are on loopback
    webhooks = ("--webhook-host", "127.0.0.1", "--webhook-retry-delay", "0.01")
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    started = start_without_vllm(folder / "data", "--python-graders", "unconfined", *webhooks, *tls)
    running = replace(started, url=started.url.replace("http://", "https://"), ca_file=trusted)
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def _trusted(service: Service, monkeypatch: pytest.MonkeyPatch, _scrubbed_environment: None) -> None:
    """Clients that name no certificates trust the service's, and so do the processes that tests start."""
    monkeypatch.setenv("TUNEWRIGHT_CA_FILE", str(service.ca_file))
    monkeypatch.setenv("SSL_CERT_FILE", str(service.ca_file))
