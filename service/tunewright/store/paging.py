"""OpenAI's paging for every list: at most `limit` rows after the id `after`, and whether there are more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, Table, select

from tunewright.errors import InvalidRequest, quoted
from tunewright.store.database import Database


def page(
    database: Database,
    query: Select[Any],
    table: Table,
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> tuple[Sequence[Row[Any]], bool]:
    """Rows of `query` over `table` (which has `id` and `seq`), newest first unless `ascending`.

    Raises InvalidRequest where `after` is no row's id: the client would otherwise start again without noticing.
    """
    with database.read() as connection:
        if after is not None:
            start = connection.scalar(select(table.c.seq).where(table.c.id == after))
            if start is None:
                raise InvalidRequest(f"No such object to list after: {quoted(after)}.", param="after")
            query = query.where(table.c.seq > start if ascending else table.c.seq < start)
        order = table.c.seq.asc() if ascending else table.c.seq.desc()
        rows = connection.execute(query.order_by(order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
