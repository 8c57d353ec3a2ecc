"""A server with S3's interface: moto's, in a thread of the tests' process. While it is stopped it keeps its buckets."""

from __future__ import annotations

import logging
from itertools import count

import httpx
from moto.server import ThreadedMotoServer

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "s3-secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


class S3:
    """The server. `bucket()` makes a bucket of its own for a test."""

    keys = KEYS

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._names = count(1)
        self._server = self._start(0)
        self.endpoint = "http://{}:{}".format(*self._server.get_host_and_port())

    def bucket(self) -> str:
        """The URL of a prefix in a new bucket."""
        name = f"tunewright-{next(self._names)}"
        httpx.put(f"{self.endpoint}/{name}").raise_for_status()
        return f"s3://{name}/of/a-service"

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.stop()
        self._server._server.server_close()

    def start_again(self) -> None:
        self._server = self._start(int(self.endpoint.rpartition(":")[2]))

    def _start(self, port: int) -> ThreadedMotoServer:
        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        return server
