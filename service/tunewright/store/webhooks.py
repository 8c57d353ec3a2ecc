"""Endpoints of webhooks, and the deliveries to them. Their events are written by `outbox`.

One process delivers (`webhooks`). It claims a delivery before it sends it, which counts the attempt: what a killed
process was sending is found by `recover`, and is sent again with the same id of its event.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, func, insert, select, update

from tunewright.errors import InvalidRequest
from tunewright.store.database import Database
from tunewright.store.paging import page
from tunewright.store.states import DeliveryState
from tunewright.store.tables import DEFAULT_PROJECT, webhook_deliveries, webhook_endpoints, webhook_events
from tunewright.store.webhook_records import Attempt, Delivery, WebhookEndpoint, WebhookEvent

MOST_ENDPOINTS = 100
"""Endpoints of a project: an event is written for each in the transaction of what it tells."""
PLACES, PLACES_AT_ENDPOINT, PLACES_OF_PROJECT, PLACES_OF_LONE_PROJECT = 32, 4, 8, 24
"""Attempts under way: in all, to one endpoint, of one project while others wait, and of one in any case, so that there
are some for the next one."""
_MOST_ATTEMPTS = 50
"""Attempts of a delivery that are kept, the newest ones."""
_CUT_OFF = "The service was stopped or killed before the answer."

_pending = webhook_deliveries.c.state == DeliveryState.PENDING
_waits = _pending & webhook_deliveries.c.sent_at.is_(None)


class WebhookStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # endpoints

    def create_endpoint(self, values: Mapping[str, Any], *, repeat_seconds: float = 0.0) -> WebhookEndpoint:
        """Insert an endpoint with these values: id, name, url, event_types, salt and hint. Or return the one that the
        same request has created within the last `repeat_seconds`, if it was not changed since.

        Raises InvalidRequest where the project has as many as it may have.
        """
        now = time.time()
        project = self._database.project or values.get("project", DEFAULT_PROJECT)
        table = webhook_endpoints.c
        with self._database.begin(alone="create a webhook endpoint") as connection:
            recent = select(webhook_endpoints).where(
                table.project == project, table.url == values["url"], table.name == values["name"],
                table.created_at > now - repeat_seconds, table.updated_at == table.created_at,
            )  # fmt: skip
            for row in connection.execute(recent):
                if row.event_types == values["event_types"]:
                    return WebhookEndpoint(**row._mapping)
            count = select(func.count()).select_from(webhook_endpoints).where(table.project == project)
            if (connection.scalar(count) or 0) >= MOST_ENDPOINTS:
                raise InvalidRequest(
                    f"There are {MOST_ENDPOINTS} webhook endpoints, which is the limit: delete one first, or give one "
                    "more event types.",
                    code="too_many_webhook_endpoints",
                )
            row = connection.execute(
                insert(webhook_endpoints)
                .values(created_at=now, updated_at=now, **values)
                .returning(webhook_endpoints)
            ).one()
        return WebhookEndpoint(**row._mapping)

    def endpoint(self, id: str) -> WebhookEndpoint | None:
        with self._database.read() as connection:
            return _endpoint(connection, id)

    def endpoints(
        self, *, after: str | None = None, limit: int = 10**6
    ) -> tuple[Sequence[WebhookEndpoint], bool]:
        """A page of endpoints, newest first, and whether there are more."""
        query = select(webhook_endpoints)
        rows, more = page(self._database, query, webhook_endpoints, after=after, limit=limit)
        return [WebhookEndpoint(**row._mapping) for row in rows], more

    def update_endpoint(self, id: str, **values: Any) -> WebhookEndpoint | None:
        """Change its name, url or event_types. What equals the present values changes nothing."""
        with self._database.begin() as connection:
            found = _endpoint(connection, id)
            if found is None or all(getattr(found, name) == value for name, value in values.items()):
                return found
            return _change(connection, id, values)

    def rotate(self, id: str, salt: str, hint: str, old_until: float | None) -> WebhookEndpoint | None:
        """Give the endpoint another secret. The one before signs too until `old_until`; None: not any more."""
        with self._database.begin() as connection:
            found = _endpoint(connection, id)
            if found is None:
                return None
            old = found.salt if old_until is not None else None
            values = {"salt": salt, "hint": hint, "old_salt": old, "old_until": old_until}
            return _change(connection, id, values)

    def delete_endpoint(self, id: str) -> bool:
        """Delete an endpoint with its deliveries; False where it does not exist."""
        with self._database.begin() as connection:
            gone = connection.execute(delete(webhook_endpoints).where(webhook_endpoints.c.id == id))
            return gone.rowcount > 0

    # deliveries

    def deliveries(
        self,
        *,
        endpoint_id: str | None = None,
        state: DeliveryState | None = None,
        event_type: str | None = None,
        after: str | None = None,
        limit: int = 10**6,
    ) -> tuple[Sequence[Delivery], bool]:
        """A page of deliveries, newest first, and whether there are more."""
        query = _deliveries()
        if endpoint_id is not None:
            query = query.where(webhook_deliveries.c.endpoint_id == endpoint_id)
        if state is not None:
            query = query.where(webhook_deliveries.c.state == state)
        if event_type is not None:
            query = query.where(webhook_events.c.type == event_type)
        rows, more = page(self._database, query, webhook_deliveries, after=after, limit=limit)
        return [_delivery(row) for row in rows], more

    def delivery(self, id: str) -> Delivery | None:
        with self._database.read() as connection:
            row = connection.execute(_deliveries().where(webhook_deliveries.c.id == id)).one_or_none()
        return _delivery(row) if row else None

    def replay(self, id: str) -> Delivery | None:
        """Send the event once more, now, with all attempts before it. One that is being sent stays as it is."""
        unsent = (webhook_deliveries.c.id == id, webhook_deliveries.c.sent_at.is_(None))
        values = {"state": DeliveryState.PENDING, "due_at": time.time(), "ended_at": None, "tries": 0}
        with self._database.begin() as connection:
            connection.execute(update(webhook_deliveries).where(*unsent).values(**values))
            row = connection.execute(_deliveries().where(webhook_deliveries.c.id == id)).one_or_none()
        return _delivery(row) if row else None

    def prune(self, ended_before: float) -> int:
        """Delete the deliveries that ended before this time, whether or not they were taken, and the events that no
        delivery is left of. Returns how many deliveries there were."""
        old = (~_pending, webhook_deliveries.c.ended_at < ended_before)
        told = exists().where(webhook_deliveries.c.event_id == webhook_events.c.id)
        with self._database.begin() as connection:
            gone = connection.execute(delete(webhook_deliveries).where(*old)).rowcount
            # a newer event may have been written just now, whose deliveries another transaction has not committed
            connection.execute(
                delete(webhook_events).where(~told, webhook_events.c.created_at < ended_before)
            )
        return gone

    # for the process that delivers

    def next_due(self) -> float | None:
        """When the next attempt is due; 0 where one was begun that has not ended, None where none is to be made."""
        begun = select(exists().where(_pending, webhook_deliveries.c.sent_at.is_not(None)))
        with self._database.read() as connection:
            if connection.scalar(begun):
                return 0.0
            first = connection.scalar(select(func.min(webhook_deliveries.c.due_at)).where(_waits))
        return None if first is None else float(first)

    def recover(self, most_tries: int, without: Collection[str] = ()) -> int:
        """End the attempts that a killed process has begun, when no process makes others than those of the deliveries
        in `without`; they are made again at once, unless they were the last ones. Returns how many there were."""
        begun = (
            select(webhook_deliveries)
            .where(_pending, webhook_deliveries.c.sent_at.is_not(None))
            .where(webhook_deliveries.c.id.not_in(without))
        )
        with self._database.begin() as connection:
            rows = connection.execute(begun).all()
            for row in rows:
                now = time.time()
                attempt = Attempt(row.sent_at, max(0.0, now - row.sent_at), None, _CUT_OFF)
                is_last = row.tries >= most_tries
                _end_attempt(connection, row, attempt, None if is_last else now)
        return len(rows)

    def claim(
        self, under_way: Collection[WebhookEndpoint] = ()
    ) -> Sequence[tuple[Delivery, WebhookEndpoint]]:
        """Begin attempts that are due, those first that are due longest, in the places that are left. `under_way`: the
        endpoint of each attempt that has not ended."""
        with self._database.read() as connection:  # most of the time there is nothing to write
            ids = _next_due(connection, under_way)
        if not ids:
            return []
        claimed = (webhook_deliveries.c.id.in_(ids), _waits)
        values = {"sent_at": time.time(), "tries": webhook_deliveries.c.tries + 1}
        with self._database.begin() as connection:
            ours = connection.scalars(
                update(webhook_deliveries).where(*claimed).values(**values).returning(webhook_deliveries.c.id)
            ).all()
            rows = connection.execute(_deliveries().where(webhook_deliveries.c.id.in_(ours))).all()
            found = [(_delivery(row), _endpoint(connection, row.endpoint_id)) for row in rows]
        return [(delivery, endpoint) for delivery, endpoint in found if endpoint is not None]

    def ended(self, delivery: Delivery, attempt: Attempt, retry_at: float | None) -> None:
        """End an attempt. Where it has failed, the next is due at `retry_at`; None: there is none."""
        query = select(webhook_deliveries).where(webhook_deliveries.c.id == delivery.id)
        with self._database.begin() as connection:
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is not None:  # else its endpoint was deleted meanwhile
                _end_attempt(connection, row, attempt, retry_at)


def _next_due(connection: Connection, under_way: Collection[WebhookEndpoint]) -> Sequence[str]:
    """The deliveries that get the places which are left."""
    table, now, chosen = webhook_deliveries.c, time.time(), list[str]()
    at_endpoint = Counter(endpoint.id for endpoint in under_way)
    of_project = Counter(endpoint.project for endpoint in under_way)
    for most in (PLACES_OF_PROJECT, PLACES_OF_LONE_PROJECT):
        while (left := PLACES - len(under_way) - len(chosen)) > 0:
            due = (
                select(table.id, table.endpoint_id, table.project)
                .where(_waits, table.due_at <= now, table.id.not_in(chosen))
                .where(table.endpoint_id.not_in(_full(at_endpoint, PLACES_AT_ENDPOINT)))
                .where(table.project.not_in(_full(of_project, most)))
                .order_by(table.due_at, table.seq)
                .limit(left)
            )
            rows = connection.execute(due).all()
            for row in rows:  # of which the first has a place
                if at_endpoint[row.endpoint_id] < PLACES_AT_ENDPOINT and of_project[row.project] < most:
                    chosen.append(row.id)
                    at_endpoint[row.endpoint_id] += 1
                    of_project[row.project] += 1
            if len(rows) < left:
                break
        if not _full(of_project, most):  # no project was left out
            break
    return chosen


def _full(places: Mapping[str, int], most: int) -> Sequence[str]:
    return [name for name, number in places.items() if number >= most]


def _end_attempt(connection: Connection, row: Row[Any], attempt: Attempt, retry_at: float | None) -> None:
    values: dict[str, Any] = {
        "sent_at": None, "attempts": [*row.attempts, attempt.as_json()][-_MOST_ATTEMPTS:]
    }  # fmt: skip
    if attempt.error is not None and retry_at is not None:
        values["due_at"] = retry_at
    else:
        state = DeliveryState.DELIVERED if attempt.error is None else DeliveryState.DEAD_LETTER
        values |= {"state": state, "ended_at": attempt.at + attempt.seconds}
    connection.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == row.id).values(**values))


def _endpoint(connection: Connection, id: str) -> WebhookEndpoint | None:
    query = select(webhook_endpoints).where(webhook_endpoints.c.id == id)
    row = connection.execute(query).one_or_none()
    return WebhookEndpoint(**row._mapping) if row else None


def _change(connection: Connection, id: str, values: Mapping[str, Any]) -> WebhookEndpoint | None:
    """None where it was deleted meanwhile, which is possible on PostgreSQL."""
    row = connection.execute(
        update(webhook_endpoints)
        .where(webhook_endpoints.c.id == id)
        .values(updated_at=time.time(), **values)
        .returning(webhook_endpoints)
    ).one_or_none()
    return WebhookEndpoint(**row._mapping) if row else None


def _deliveries() -> Select[Any]:
    event = (
        webhook_events.c.type.label("event_type"),
        webhook_events.c.created_at.label("event_created_at"),
        webhook_events.c.data.label("event_data"),
    )
    joined = webhook_deliveries.join(webhook_events, webhook_events.c.id == webhook_deliveries.c.event_id)
    return select(webhook_deliveries, *event).select_from(joined)


def _delivery(row: Row[Any]) -> Delivery:
    values = dict(row._mapping)
    event = WebhookEvent(
        values.pop("event_id"),
        values.pop("event_type"),
        values.pop("event_created_at"),
        values.pop("event_data"),
    )
    values["state"] = DeliveryState(values["state"])
    values["attempts"] = [Attempt(**one) for one in values["attempts"]]
    return Delivery(**values, event=event)
