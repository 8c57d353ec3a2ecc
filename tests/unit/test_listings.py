"""Lists of models: one query a page, each model with its residency, and filters that agree with the shown states."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, update

from rows import PRODUCT, engine_info
from tunewright.store.listings import AdapterFilter
from tunewright.store.records import Lineage
from tunewright.store.states import EngineState, ModelState, Residency, Source
from tunewright.store.store import Store
from tunewright.store.tables import models, residency

EVERYTHING = AdapterFilter()


pytestmark = pytest.mark.each_database


def register(store: Store, number: int, **changes: Any) -> str:
    values = {**PRODUCT, "id": f"adapter-{number}", "name": f"ft:tiny::{number}", "sha256": f"{number:064}"}
    return store.models.register({**values, "source": Source.UPLOAD, "lineage": None, **changes}).name


@contextmanager
def counted(store: Store) -> Iterator[list[str]]:
    """The statements that are run meanwhile, but for those of transactions."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    event.listen(store.database._engine, "before_cursor_execute", note)
    yield statements
    event.remove(store.database._engine, "before_cursor_execute", note)


def test_a_page_is_one_query_however_long(store: Store) -> None:
    store.engines.declare(["tiny"])
    engine = store.engines.starting("tiny", "/tmp/s", engine_info(max_model_len=9))
    row = {"kind": "adapter", "created_at": 1.0, "lineage": {"seed": 1}}
    rows = [{**PRODUCT, **row, "id": f"a-{n}", "name": f"n-{n}", "sha256": f"{n:064}"} for n in range(1000)]
    held = [
        {"engine": "tiny", "run": engine.run, "sha256": f"{n:064}", "state": "loaded", "at": 1.0}
        for n in range(300)
    ]
    with store.database.begin() as connection:
        connection.execute(insert(models), rows)
        connection.execute(insert(residency), held)
    with counted(store) as statements:
        began = time.perf_counter()
        found, more = store.listings.adapters(EVERYTHING, after=None, limit=100)
        took = time.perf_counter() - began
    assert (len(found), more, len(statements)) == (100, True, 1)
    if store.database.is_sqlite:
        assert took < 0.1, f"{took:.3f} s"
    with counted(store) as statements:
        again, _ = store.listings.adapters(EVERYTHING, after=found[-1].model.id, limit=100)
    assert len(statements) == 2, "one finds where to go on"
    assert again[0].model.seq == found[-1].model.seq - 1
    with counted(store) as statements:
        assert len(store.listings.models()) == 1000
    assert len(statements) == 1


def test_each_comes_with_its_engine_and_what_that_holds(store: Store) -> None:
    store.engines.declare(["tiny", "other"])
    engine = store.engines.starting("tiny", "/tmp/s", engine_info(max_model_len=9))
    twin = store.engines.starting("other", "/tmp/o", engine_info())
    register(store, 1)
    register(store, 2, sha256="a" * 64)
    register(store, 3, sha256="a" * 64)
    register(store, 4, base="other", sha256="a" * 64)
    register(store, 5, base="gone")
    store.engines.set_residency(engine, "a" * 64, Residency.FAILED, error="why")
    store.engines.set_residency(twin, "a" * 64, Residency.LOADED)
    found = {x.model.id: x for x in store.listings.adapters(EVERYTHING, after=None, limit=9)[0]}
    held = {id: x.held and (x.held.state, x.held.error) for id, x in found.items()}
    assert held == {
        "adapter-5": None,
        "adapter-4": (Residency.LOADED, None),
        "adapter-3": (Residency.FAILED, "why"),
        "adapter-2": (Residency.FAILED, "why"),
        "adapter-1": None,
    }
    assert found["adapter-5"].engine is None
    assert found["adapter-1"].engine == store.engines.get("tiny")
    for name in [x.model.name for x in found.values()]:
        model, engine_of, resident = store.models.resolve(name)
        assert model is not None
        shown = found[model.id]
        assert (shown.model, shown.engine, shown.held) == (model, engine_of, resident)


def test_of_checkpoints_the_models_are_those_wanted_loaded(store: Store) -> None:
    names = [register(store, 1), register(store, 2, checkpoint_step=8)]
    register(store, 3, checkpoint_step=9, desired="unloaded")
    names.append(register(store, 4, kind="full", desired="unloaded"))
    assert [x.model.name for x in store.listings.models()] == names[::-1]


STATES = {
    "loaded", "loading", "draining", "unloaded", "failed", "checking", "unchecked", "quarantined", "merge_only",
}  # fmt: skip


def test_a_filter_means_what_is_shown(store: Store) -> None:
    """The database and the record derive the same state, from every combination of its columns."""
    store.engines.declare(["tiny"])
    engine = store.engines.starting("tiny", "/tmp/s", engine_info())
    number = 0
    for state in ModelState:
        for held in (None, *Residency):
            for desired in ("loaded", "unloaded"):
                for parity in (None, {"verdict": "pass"}, {"asked_at": 1.0}):
                    number += 1
                    register(store, number, state=state, desired=desired, parity=parity)
                    if held is not None:
                        store.engines.set_residency(engine, f"{number:064}", held)
    everything = store.listings.adapters(EVERYTHING, after=None, limit=999)[0]
    assert {x.state for x in everything} == STATES
    for state in STATES:
        found, _ = store.listings.adapters(AdapterFilter(state=state), after=None, limit=999)
        assert found == [x for x in everything if x.state == state]
    for loaded in (True, False):
        found, _ = store.listings.adapters(AdapterFilter(loaded=loaded), after=None, limit=999)
        assert found == [x for x in everything if (x.state == "loaded") is loaded]


def test_filters_narrow_together_and_page(store: Store) -> None:
    for number in range(6):
        register(store, number, base="tiny" if number % 2 else "other", job_id=f"job-{number // 3}")
    found, more = store.listings.adapters(AdapterFilter(base="tiny", job_id="job-1"), after=None, limit=1)
    assert ([x.model.id for x in found], more) == (["adapter-5"], True)
    found, more = store.listings.adapters(
        AdapterFilter(base="tiny", job_id="job-1"), after="adapter-5", limit=1
    )
    assert ([x.model.id for x in found], more) == (["adapter-3"], False)
    assert store.listings.adapters(AdapterFilter(base="none"), after=None, limit=9)[0] == []


@pytest.mark.parametrize("state", [ModelState.QUARANTINED, ModelState.MERGE_ONLY])
def test_what_is_not_served_is_not_wanted(store: Store, state: ModelState) -> None:
    name = register(store, 1)
    assert [m.name for m in store.models.wanted_adapters("tiny").values()] == [name]
    with store.database.begin() as connection:
        connection.execute(update(models).values(state=state))
    assert store.models.wanted_adapters("tiny") == {}


def test_an_adapter_is_registered_once_by_its_id(store: Store) -> None:
    lineage = Lineage(origin="a.tar", seed=None)
    first = register(store, 1, lineage={"origin": "a.tar"})
    assert register(store, 1, name="ft:tiny::other") == first
    model = store.models.get(first)
    assert model is not None
    assert (model.source, model.state, model.lineage) == (Source.UPLOAD, ModelState.READY, lineage)
    assert (model.pinned, model.parity, model.last_used_at, model.job_id) == (False, None, None, None)


def test_an_engine_that_starts_anew_holds_nothing(store: Store) -> None:
    store.engines.declare(["tiny"])
    engine = store.engines.starting("tiny", "/tmp/s", engine_info())
    register(store, 1)
    store.engines.set_residency(engine, f"{1:064}", Residency.LOADED)
    store.engines.set_state("tiny", EngineState.READY)
    store.engines.starting("tiny", "/tmp/s", engine_info())
    store.engines.set_residency(engine, f"{1:064}", Residency.LOADED)
    (found,) = store.listings.models()
    assert (found.held, found.state) == (None, "loading")
