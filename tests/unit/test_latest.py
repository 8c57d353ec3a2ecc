"""Answers of queries are kept while nobody has changed the database, and never longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rows import create_job
from tunewright.store.latest import Latest
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database


@pytest.fixture
def counted(store: Store) -> tuple[Store, Callable[[], list[str]], list[int]]:
    """The store, a query of the ids of its jobs that wait, and how often it was asked."""
    asked = [0]

    def query() -> list[str]:
        asked[0] += 1
        return [job.id for job in store.jobs.queued()]

    return store, query, asked


def test_the_own_changes_and_those_of_others_are_seen_at_once(
    counted: tuple[Store, Callable[[], list[str]], list[int]],
) -> None:
    store, query, asked = counted
    other = Store.open(store.database.url)
    latest = Latest(store.database)
    assert latest(query) == []
    first: Job = create_job(store, state=JobState.QUEUED)
    assert latest(query) == [first.id]
    second = create_job(other, state=JobState.QUEUED)
    assert latest(query) == [first.id, second.id]
    with other.database.begin():  # within a transaction of another that is not done yet
        before = latest(query)
    assert before == latest(query) == [first.id, second.id]
    create_job(other, state=JobState.RUNNING)
    many = asked[0]
    for _ in range(5):
        latest(query)
    assert asked[0] - many == (1 if store.database.is_sqlite else 5)
    latest.close()
    assert latest(query), "it opens again"
    latest.close()
    other.close()


def test_two_queries_have_two_answers(store: Store) -> None:
    latest = Latest(store.database)
    job = create_job(store, state=JobState.QUEUED)
    for _ in range(2):
        assert [one.id for one in latest(store.jobs.queued)] == [job.id]
        assert latest(store.jobs.active) == []
    latest.close()
