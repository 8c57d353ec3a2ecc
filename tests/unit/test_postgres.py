"""What is promised of PostgreSQL alone: one state for readers, errors that say what to do, and texts that it stores."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.engine import make_url

import postgres as postgres_server
from postgres import Server
from rows import FILE, create_job
from tunewright.errors import Busy, DatabaseUnavailable
from tunewright.store.database import Database
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.store.tables import files, jobs

pytestmark = [
    pytest.mark.parametrize("backend", ["postgresql"]),
    pytest.mark.skipif(
        postgres_server.missing() is not None, reason=f"PostgreSQL is left out: {postgres_server.missing()}"
    ),
]


def add_file(store: Store, id: str, **changes: object) -> None:
    store.files.add(**{**FILE, "id": id, **changes})


def test_the_plain_url_is_enough(store: Store) -> None:
    plain = make_url(store.database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    other = Store.open(plain)
    assert other.files.get(FILE["id"]) == store.files.get(FILE["id"])
    assert str(other.database) == str(store.database)
    other.close()


def test_a_reader_sees_one_state(store: Store) -> None:
    count = select(func.count()).select_from(files)
    with store.database.read() as connection:
        before = connection.scalar(count)
        add_file(store, "file-2")
        assert connection.scalar(count) == before
    with store.database.read() as connection:
        assert connection.scalar(count) == 2


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match="read-only transaction"), store.database.read() as connection:
        connection.execute(update(files).values(filename="x"))


def test_transactions_in_each_others_way_are_to_be_tried_again(store: Store) -> None:
    add_file(store, "file-2")
    both = threading.Barrier(2)
    outcomes: list[str] = []

    def change(*ids: str) -> None:
        try:
            with store.database.begin() as connection:
                for number, id in enumerate(ids):
                    connection.execute(update(files).where(files.c.id == id).values(filename="x"))
                    if number == 0:
                        both.wait(30)
            outcomes.append("done")
        except Busy:
            outcomes.append("busy")

    threads = [
        threading.Thread(target=change, args=ids) for ids in ((FILE["id"], "file-2"), ("file-2", FILE["id"]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["busy", "done"]


def test_a_database_that_goes_away_comes_back(store: Store, postgres: Server) -> None:
    with postgres.refusing(store.database.url):
        with pytest.raises(DatabaseUnavailable):
            store.files.get(FILE["id"])
        with pytest.raises(DatabaseUnavailable):
            add_file(store, "file-2")
    assert store.files.get(FILE["id"])
    assert store.files.get("file-2") is None


def test_a_connection_that_is_ended_in_a_transaction_changes_nothing(store: Store, postgres: Server) -> None:
    def change() -> None:
        with store.database.begin() as connection:
            connection.execute(update(files).values(filename="x"))
            with postgres.refusing(store.database.url):
                connection.execute(update(files).values(filename="y"))

    with pytest.raises(DatabaseUnavailable):
        change()
    found = store.files.get(FILE["id"])
    assert found is not None
    assert found.filename == FILE["filename"]


def test_texts_with_a_character_that_it_cannot_store_stop_nothing(store: Store) -> None:
    """An upload's name, what a process printed, and values in JSON, of which one would end each look into a column."""
    add_file(store, "file-2", filename="a\0b")
    assert {file.filename for file in store.files.list(purpose=None, after=None, limit=9)[0]} >= {"a\ufffdb"}
    odd = create_job(
        store, state=JobState.RUNNING, metadata={"a": "\0", "b": "\\u0000 \ud83d", "c": "\U0001f600"}
    )
    store.jobs.add_event(odd, {"level": "info", "type": "message", "message": "\0", "data": {"x": "\0"}})
    even = create_job(store, metadata={"a": "1"}, fingerprint="g")
    found = store.jobs.list(kind="fine_tuning", after=None, limit=9, metadata={"a": "1"})[0]
    assert [job.id for job in found] == [even.id]
    stored = store.jobs.get(odd.id)
    assert stored is not None
    assert stored.metadata == {"a": "\ufffd", "b": "\\u0000 \ufffd", "c": "\U0001f600"}
    (event,) = [
        event for event in store.jobs.events(odd.id, after=None, limit=9)[0] if event.message == "\ufffd"
    ]
    assert event.data == {"x": "\ufffd"}
    with store.database.read() as connection:
        assert connection.execute(select(jobs.c.request["model"].as_string())).all()


def test_a_table_of_another_program_is_left_alone(store: Store) -> None:
    with store.database.begin() as connection:
        connection.execute(text("CREATE TABLE other (x int)"))
    database = Database(store.database.url)
    database.upgrade()
    assert database.revision()
    database.close()
