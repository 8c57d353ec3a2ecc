"""`python -m tunewright.api --fd N`: the api's process, started by the supervisor on its listening socket.

The socket outlives this process: while the api restarts, connections wait in its backlog and are not refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.managers
import resource
import socket
import tempfile
import threading
from collections.abc import Callable

import litserve as ls
import uvicorn
from fastapi import FastAPI
from setproctitle import setproctitle

from tunewright import tracing
from tunewright.api.gateway.external_judge import ExternalJudge
from tunewright.api.gateway.inner import InnerGateway
from tunewright.api.gateway.proxy import Gateway
from tunewright.api.http.app import build
from tunewright.api.http.certificates import LOOKED_EVERY, Certificate
from tunewright.api.http.connection import Connection
from tunewright.api.http.liveness import ApiHeartbeat, watch_worker
from tunewright.api.http.stalls import StallWatch
from tunewright.config import ServerOptions, settings_in_child
from tunewright.engine.command import inner_socket, short_temporary_folder
from tunewright.logs import configure_logging
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import PERIOD, HeartbeatWatch
from tunewright.supervisor.standby import wait_until_needed

log = logging.getLogger("tunewright.api")

_DESCRIPTORS = 65_536
_TICK = 0.1
"""Seconds between two ticks of uvicorn."""
_FLUSH = 0.5
"""Seconds to send the last spans, of the 4 that the supervisor gives this process."""
_GRACE = 3
"""Seconds that running requests have to end when the process is stopped."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="a listening socket's descriptor")
    parser.add_argument("--standby", type=int, help="a descriptor: wait until a byte can be read from it")
    arguments = parser.parse_args()
    if arguments.standby is not None:
        setproctitle("tunewright: standby of the api")
        if not wait_until_needed(arguments.standby):
            return 0
    settings = settings_in_child()
    setproctitle("tunewright: api")
    configure_logging(settings.processes.log_level, settings.telemetry.log_format)
    _allow_many_connections()
    store = Store.open(settings.storage.resolved_database_url)
    server, spec = build(settings, store)
    tempfile.tempdir = str(short_temporary_folder())  # for multiprocessing's socket
    manager = _start_workers(server)
    tracing.start(settings.telemetry.otlp_endpoint, "api")
    workspace = Workspace.of(settings.storage)
    assert spec.gateway is not None, "`build` has made it"
    inner = InnerGateway(
        spec.gateway,
        inner_socket(workspace.path),
        ExternalJudge.of(settings.server),
        settings.serving.media_domain,
        store.policies,
    )  # before `tempdir` is another one
    tempfile.tempdir = str(workspace.tmp)  # uploads are spooled on the file system on which they are stored
    heartbeat = ApiHeartbeat(workspace.heartbeat("api"), server._shutdown_event.is_set)
    heartbeat.start()
    server.app.state.context.checks.resume(store, workspace)
    web = web_server(server.app, settings.server, heartbeat.beat, inner, spec.gateway)
    threading.Thread(target=_stop_with_queues, args=(manager, web), daemon=True).start()
    watch = HeartbeatWatch(workspace.heartbeat("worker"), settings.processes.hang_timeout)
    threading.Thread(target=watch_worker, args=(server.inference_workers, watch), daemon=True).start()
    gc.freeze()  # what is there stays there, and need not be looked at each time that a large body is parsed
    gc.enable()
    try:
        web.run(sockets=[socket.socket(fileno=arguments.fd)])
    finally:
        with contextlib.suppress(OSError, EOFError):  # raised where the manager was killed
            server._shutdown_event.set()
        server._transport.close()
        for worker in server.inference_workers:
            worker.kill()
        manager.shutdown()
        store.close()
        tracing.stop(_FLUSH)
    return 0


class _WatchedServer(uvicorn.Server):
    """Logs what blocks the event loop. Calls `beat` from it about once a second, so no heartbeat is written while it is
    blocked."""

    def __init__(
        self,
        config: uvicorn.Config,
        beat: Callable[[], None],
        inner: InnerGateway | None = None,
        gateway: Gateway | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._renewing: asyncio.Task[None] | None = None
        self._beat = beat
        self._inner = inner
        self._gateway = gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._certificate is not None:
            assert self.config.ssl is not None, "it has the files of the certificate"
            self._certificate.serve_with(self.config.ssl)
        await super().startup(sockets)

    async def main_loop(self) -> None:
        stalls = StallWatch()
        try:
            if self._inner is not None:
                await self._inner.start()
            await super().main_loop()
        finally:
            stalls.stop()
            if self._inner is not None:
                await self._inner.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._gateway is not None:
            await self._gateway.ledger.close()  # what was used since it was written last
        context = getattr(self.config.app.state, "context", None)  # type: ignore[union-attr]
        if context is not None and context.trail is not None:
            await context.trail.close()

    async def on_tick(self, counter: int) -> bool:
        if counter % int(PERIOD / _TICK) == 0:
            self._beat()
        if self._certificate is not None and counter % int(LOOKED_EVERY / _TICK) == 0:
            self._renewing = asyncio.create_task(self._certificate.renew())
        return await super().on_tick(counter)


def web_server(
    app: FastAPI,
    options: ServerOptions,
    beat: Callable[[], None] = lambda: None,
    inner: InnerGateway | None = None,
    gateway: Gateway | None = None,
) -> uvicorn.Server:
    certificate = Certificate.of(options)
    return _WatchedServer(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=75,
            http=functools.partial(  # type: ignore[arg-type]
                Connection, slow_reader_timeout=options.slow_reader_timeout
            ),
            loop="uvloop",
            ws="none",
            server_header=False,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        ),
        beat,
        inner,
        gateway,
        certificate,
    )


def _stop_with_queues(manager: multiprocessing.managers.SyncManager, web: uvicorn.Server) -> None:
    """Stop the web server when the process of LitServe's queues has ended.

    Without the queues no adapter can be loaded, and nothing restarts their process alone; the supervisor restarts the
    api as a whole.
    """
    multiprocessing.connection.wait([manager._process.sentinel])  # type: ignore[attr-defined]
    if not web.should_exit:
        log.error("the process of LitServe's queues has ended; the api restarts")
        web.should_exit = True


def _allow_many_connections() -> None:
    """Raise the limit of file descriptors: a generation uses two, and many systems allow a process only 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _start_workers(server: ls.LitServer) -> multiprocessing.managers.SyncManager:
    """Start LitServe's queues and workers, as `LitServer.run` does before it forks its API servers.

    This process is the only API server, since nothing would restart forked ones. The same as `wrap_litserve_start` in
    litserve/utils.py.
    """
    server.app.response_queue_id = 0
    for api in server.litapi_connector:
        api.spec.response_queue_id = 0
    manager: multiprocessing.managers.SyncManager = server._init_manager(1)
    server.inference_workers = [
        worker for api in server.litapi_connector for worker in server.launch_inference_worker(api)
    ]
    server._prepare_app_run(server.app)
    server._start_worker_monitoring(manager, {})
    return manager
