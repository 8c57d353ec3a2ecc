"""`tunewright serve`: checks the options, prepares the data folder, and hands over to the supervisor."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError
from setproctitle import setproctitle

from tunewright import tracing
from tunewright.api.http.certificates import Certificate, CertificateUnusable
from tunewright.backup.errors import BackupError
from tunewright.backup.locks import ServiceRecord, archive_lock, held, hold, service_lock
from tunewright.backup.swap import clear_abandoned, finish_restore, is_restore_pending
from tunewright.config import ServerOptions, Settings, child_environment, settings_from_command_line
from tunewright.engine.devices import find_devices
from tunewright.engine.placement import options_of_bases
from tunewright.errors import ArtifactsUnavailable, InvalidRequest, TunewrightError
from tunewright.log_files import keep_small
from tunewright.logs import configure_logging
from tunewright.registry.bucket import why_no_s3
from tunewright.registry.bucket_owner import Ownership
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database, known_revisions
from tunewright.store.service_lock import ServiceLock
from tunewright.store.sqlite_file import DatabaseUnusable
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import HeartbeatWatch
from tunewright.supervisor.supervisor import Reload, Service, Supervisor

log = logging.getLogger("tunewright.serve")

_API_GRACE, _SCHEDULER_GRACE = 4.0, 13.5


def main(argv: list[str]) -> int:
    """Run the service until it is stopped. Returns the exit code: 2 for wrong options, 1 where it cannot start."""
    try:
        settings = settings_from_command_line(argv)
    except (ValidationError, SettingsError) as error:
        print(f"tunewright serve: {_explain(error)}", file=sys.stderr)
        return 2
    os.umask(0o077)  # for everything that this process and its children write, wherever the data folder is
    missing = tracing.missing_packages() if settings.telemetry.otlp_endpoint is not None else None
    if missing is not None:
        text = f"--otlp-endpoint needs packages of OpenTelemetry, of which {missing} is missing"
        print(f"tunewright serve: {text}: pip install tunewright[otlp]", file=sys.stderr)
        return 1
    if settings.reports.report_to and (unreported := _why_unreported(settings)) is not None:
        print(f"tunewright serve: {unreported}", file=sys.stderr)
        return 1
    if settings.storage.artifacts is not None and (missing := why_no_s3()) is not None:
        print(f"tunewright serve: --artifacts: {missing}", file=sys.stderr)
        return 1
    try:
        Certificate.of(settings.server)
    except CertificateUnusable as error:
        print(f"tunewright serve: {error}", file=sys.stderr)
        return 1
    log_file = settings.telemetry.log_file
    try:
        keep_log = _log_to(log_file) if log_file is not None else lambda: None
    except OSError as error:
        print(f"tunewright serve: --log-file {log_file} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    configure_logging(settings.processes.log_level, settings.telemetry.log_format)
    try:
        options_of_bases(settings, find_devices(settings.processes))
    except (RuntimeError, InvalidRequest) as error:
        print(f"tunewright serve: {error}", file=sys.stderr)
        return 1
    workspace = Workspace.of(settings.storage)
    try:
        lock = hold(service_lock(workspace))
    except OSError as error:
        print(
            f"tunewright serve: the data folder {workspace.path} cannot be used: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    if lock is None:
        print(f"tunewright serve: another server uses the data folder {workspace.path}", file=sys.stderr)
        return 1
    try:
        listener = _listen(settings.server)
    except OSError as error:
        print(
            f"tunewright serve: cannot listen on {settings.server.host}:{settings.server.port}: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    settings = settings.with_options(data_dir=workspace.path)
    database_lock: ServiceLock | None = None
    try:
        database_lock = ServiceLock.take(settings.storage.resolved_database_url, workspace.path)
        _prepare(settings, workspace)
        if database_lock is not None:
            database_lock.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
        code = _run(settings, workspace, listener, keep_log)
        if database_lock is not None and database_lock.lost is not None:
            raise DatabaseUnusable(database_lock.lost)
        return code
    except (BackupError, DatabaseUnusable, TunewrightError) as error:
        print(f"tunewright serve: {error}", file=sys.stderr)
        return 1
    finally:
        if database_lock is not None:
            database_lock.close()
        os.close(lock)


def _why_unreported(settings: Settings) -> str | None:
    """Why jobs cannot be reported to what `--report-to` names."""
    # This loads the kinds of jobs, half a second of processor time. Nothing else in this process needs them.
    from tunewright.kinds.fine_tuning.reporting import why_no_mlflow, why_no_tensorboard

    for wanted, why in (("tensorboard", why_no_tensorboard()), ("mlflow", why_no_mlflow(settings))):
        if why is not None and wanted in settings.reports.report_to:
            return f"--report-to {wanted}: {why.partition(': ')[2].partition('. All else')[0]}"
    return None


def _prepare(settings: Settings, workspace: Workspace) -> None:
    """Prepare the data folder while none of the service's processes runs: at the start, and after a restore.

    The database comes first: where it is refused, nothing else was changed.

    Raises BackupError, DatabaseUnusable and StorageFull.
    """
    try:
        finish_restore(workspace, settings.storage.resolved_database_url)
        database = Database(settings.storage.resolved_database_url)
        try:
            database.upgrade(workspace.path / "backups")
        finally:
            database.close()
        workspace.create()
        workspace.clear_unfinished()
        store = Store.open(settings.storage.resolved_database_url)
        try:
            store.deployments.start_anew()
            _require_bucket(workspace, store, settings.storage.take_over_artifacts)
        finally:
            store.close()
        with held(archive_lock(workspace)) as ours:
            if ours:
                clear_abandoned(workspace)
        ServiceRecord(known_revisions()[0], str(database)).write(workspace)
    except OSError as error:
        raise BackupError(f"the data folder {workspace.path} cannot be used: {error}") from error


def _require_bucket(workspace: Workspace, store: Store, take_over: str | None) -> None:
    """Raises ArtifactsUnavailable where the bucket of artifacts refuses or is another service's. Where it does not
    answer, the service starts with what is cached."""
    workspace.bucket_state.unlink(missing_ok=True)
    remote = workspace.remote
    if remote is not None:
        owner = Ownership(remote.bucket, store.bucket_owners, workspace.path, workspace.bucket_note)
        owner.note()
        try:
            remote.bucket.check()
            owner.claim(take_over, remote.stored, store.models.weights_in_use)
        except ArtifactsUnavailable as error:
            if error.is_refusal:
                raise
            log.error("%s The service starts with what is cached.", error.message)


def _log_to(path: Path) -> Callable[[], object]:
    """Have stdout and stderr, of this process and of those that it starts, go to the end of a file. Returns what keeps
    it small. Raises OSError."""
    path = path.expanduser().absolute()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    sys.stdout.flush()
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)

    def keep() -> None:
        with suppress(OSError):  # what cannot be rotated now is rotated later
            keep_small(path)

    return keep


def _run(
    settings: Settings, workspace: Workspace, listener: socket.socket, each_round: Callable[[], object]
) -> int:
    setproctitle("tunewright: supervisor")
    listener.set_inheritable(True)
    services = [
        Service(
            "api",
            [sys.executable, "-m", "tunewright.api", "--fd", str(listener.fileno())],
            grace=_API_GRACE,
            descriptors=(listener.fileno(),),
            heartbeat=HeartbeatWatch(workspace.heartbeat("api"), settings.processes.hang_timeout),
            has_standby=settings.server.api_standby,
        ),
        Service(
            "scheduler",
            [sys.executable, "-m", "tunewright.scheduler"],
            grace=_SCHEDULER_GRACE,
            heartbeat=HeartbeatWatch(workspace.heartbeat("scheduler"), settings.processes.hang_timeout),
        ),
    ]
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    print(
        f"Tunewright on {settings.server.scheme}://{host}:{listener.getsockname()[1]}/v1 (data in {workspace.path}); "
        "GET /ready says when the engine is up, which takes 20 to 60 s",
        file=sys.stderr,
        flush=True,
    )
    reload = Reload(lambda: is_restore_pending(workspace), lambda: _prepare(settings, workspace))
    environment = child_environment(with_settings=settings)
    return Supervisor(services, environment, workspace.run, reload, each_round).run()


def _listen(server: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((server.host, server.port))
    listener.listen(2048)
    return listener


def _explain(error: ValidationError | SettingsError) -> str:
    """One line that names the option and what is wrong with it."""
    if isinstance(error, SettingsError):
        return str(error).splitlines()[0]
    first = error.errors()[0]
    option = "--" + str(first["loc"][0]).replace("_", "-") + ": " if first["loc"] else ""
    return option + str(first["msg"]).removeprefix("Value error, ")
