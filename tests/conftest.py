"""Fixtures for the whole suite: a clean environment, a migrated store, a data folder."""

from __future__ import annotations

import os

# Before torch is loaded: the workers, and the processes that they start, share the cores (docs/decisions/0031). Where
# all of them are busy, a second thread of a training costs a third more processor time (docs/decisions/0041).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from psutil import virtual_memory

import postgres as postgres_server
from rows import BACKENDS, FILE, PRODUCT, Publish, create_job
from scheduling import ByService, mixed
from tunewright.ids import result_file_id
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

if TYPE_CHECKING:
    from s3 import S3

_IN_MEMORY = Path("/dev/shm")
_MUCH = 12 * 2**30
"""Bytes; the whole suite leaves less than a fourth of it."""
KEPT = frozenset({"TUNEWRIGHT_ASSETS", "TUNEWRIGHT_TEST_POSTGRES"})


def pytest_configure() -> None:
    """Restore SIGINT: a suite that a shell starts in the background ignores it, and so do the processes it starts.
    Hypothesis takes the same examples every time, so that the suite fails for changes alone; `make soak-fuzz` looks for
    others. Temporary folders are in memory where there is much of it: databases and products wait for no disk."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.load_profile("ci")
    if _IN_MEMORY.is_mount() and min(disk_usage(_IN_MEMORY).free, virtual_memory().available) > _MUCH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave alone what the files of tests import, torch and what is built on it: the garbage collector would examine it
    again and again, while it is imported and in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByService:
    return ByService(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items[:] = mixed(items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `each_database` on SQLite, and on PostgreSQL where it is there; of a file that is marked, all
    but what is marked `one_database`: refusals, which ask the database nothing that other tests do not."""
    marked = metafunc.definition.get_closest_marker
    if "backend" in metafunc.fixturenames and marked("each_database") and not marked("one_database"):
        metafunc.parametrize("backend", BACKENDS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if (why := postgres_server.missing()) is not None:
        terminalreporter.write_line(
            f"PostgreSQL was left out, and SQLite alone was tested: {why}", yellow=True
        )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the TUNEWRIGHT_ variables of the caller, so that no test reads them."""
    for name in list(os.environ):
        if name.startswith("TUNEWRIGHT_") and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at the newest schema, to be copied: the migrations run once a session."""
    path = tmp_path_factory.mktemp("migrated") / "tunewright.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def data(tmp_path: Path) -> Workspace:
    folder = Workspace(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL of this process, which the first test on it starts."""
    with postgres_server.server() as running:
        yield running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """A server with S3's interface, in a thread of this process."""
    from s3 import S3  # a second of processor time, for those who ask for it

    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The same, with its keys in the environment."""
    for name, value in s3_server.keys.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def backend() -> str:
    """The database of the test; tests that are marked `each_database` run once on each (`pytest_generate_tests`)."""
    return "sqlite"


@pytest.fixture
def url(
    backend: str, request: pytest.FixtureRequest, data: Workspace, migrated_database: Path
) -> Iterator[str]:
    """The URL of a fresh database at the newest schema; one of SQLite is in `data`."""
    if backend == "postgresql":
        with request.getfixturevalue("postgres").database() as url:
            yield url
    else:
        shutil.copyfile(migrated_database, data.path / "tunewright.db")
        yield f"sqlite:///{data.path / 'tunewright.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A fresh store, with a file that jobs can name."""
    opened = Store.open(url)
    opened.files.add(**FILE)
    yield opened
    opened.close()


@pytest.fixture
def publish_model(store: Store) -> Publish:
    """Publishes products of a job, as the scheduler does: the first row is the job's model, checkpoints follow."""

    def publish(*changes: dict[str, Any], job: Job | None = None) -> bool:
        job = job or create_job(store, state=JobState.RUNNING)
        rows = [{**PRODUCT, **change} for change in changes]
        return store.models.publish(
            rows,
            job_id=job.id,
            result=FineTuningResult(trained_tokens=7),
            checkpoint_metrics={row["checkpoint_step"]: {"train_loss": 1.0} for row in rows},
            result_file={
                "id": result_file_id(job.id),
                "filename": "step_metrics.csv",
                "purpose": "fine-tune-results",
                "bytes": 5,
                "sha256": "0" * 64,
            },
        )

    return publish
