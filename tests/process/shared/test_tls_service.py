"""TLS of the whole service: batches and the shell through it, a certificate that is replaced under a stream, and
clients that know nothing of it. The other tests of this folder are made through TLS too: jobs, syntheses, webhooks."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from openai import OpenAI
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from certificates import write_certificate
from tunewright_client import APIConnectionError, Tunewright

CHUNKS = 300
"""Pieces of a stream; with 50 ms for each it is longer than the time between two looks at the certificate's files."""


def port_of(service: Service) -> int:
    return int(service.url.rpartition(":")[2])


def served(service: Service) -> str:
    """The common name of the certificate that new connections get."""
    context = ssl.create_default_context(cafile=service.ca_file)
    with (
        socket.create_connection(("127.0.0.1", port_of(service)), 60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        found = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    return str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunewright", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_batch_is_answered_through_the_shell_and_the_stock_client(service: Service, tmp_path: Path) -> None:
    line = {"method": "POST", "url": "/v1/completions", "body": {"model": BASE, "prompt": "x"}}
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps({"custom_id": f"r{n}", **line}) + "\n" for n in range(3)))
    made = run(
        "batches", "create", "--url", service.url, "--file", str(file), "--endpoint", "/v1/completions"
    )
    assert made.returncode == 0, made.stderr
    watched = run("batches", "watch", "--url", service.url, made.stdout.strip(), "--json")
    assert watched.returncode == 0, watched.stderr
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        batch = client.batches.retrieve(made.stdout.strip())
        assert (batch.status, batch.request_counts and batch.request_counts.completed) == ("completed", 3)
        answers = client.files.content(batch.output_file_id or "").text.splitlines()
    assert sorted(json.loads(answer)["custom_id"] for answer in answers) == ["r0", "r1", "r2"]


def test_a_certificate_is_replaced_under_a_stream_and_loses_nothing_of_it(
    service: Service, client: Tunewright
) -> None:
    folder = service.data_dir.parent
    assert client.health()["status"] == "ok"
    assert served(service) == "first"
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as stock:
        stream = stock.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            extra_body={"vllm_xargs": {"chunks": CHUNKS}},
        )
        next(stream)
        os.replace(folder / "next.key", folder / "key.pem")
        os.replace(folder / "next.pem", folder / "cert.pem")
        wait_until(lambda: served(service) == "second", 120, "the new certificate")
        assert client.health()["status"] == "ok", "a connection of before goes on"
        assert sum(1 for _ in stream) == CHUNKS
    with service.client() as fresh:
        assert fresh.completions.create(BASE, "x").choices[0].text


def test_clients_without_tls_and_strangers_are_told_at_once(service: Service, tmp_path: Path) -> None:
    plain = service.url.replace("https://", "http://")
    with (
        Tunewright(plain, max_retries=0) as client,
        pytest.raises(APIConnectionError, match=r"https://\.\.\."),
    ):
        client.health()
    told = run("models", "list", "--url", plain)
    assert (told.returncode, "its address is https://..." in told.stderr) == (1, True), told.stderr
    with socket.create_connection(("127.0.0.1", port_of(service)), 60) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert raw.recv(100) == b"", "the connection is closed without an answer"
    nobody = tmp_path / "nobody.pem"
    write_certificate(nobody, tmp_path / "nobody.key")
    told = run("models", "list", "--url", service.url, "--ca-file", str(nobody))
    assert (told.returncode, "certificate" in told.stderr.lower()) == (1, True), told.stderr
