"""Statements that are confined to one project.

A connection that belongs to a project (`Database.of`) changes each statement before it is executed: of every table with
a column `project` it sees and changes only that project's rows, and what it inserts is of that project. So no query of
the api can forget to ask whose row it is, and a new table takes part in this by having the column. Rows that refer to a
job by a foreign key belong to the job's project.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    Delete,
    FromClause,
    Insert,
    Select,
    Table,
    Update,
    and_,
    exists,
    or_,
    select,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Alias, Join

from tunewright.store.tables import engines, jobs, project_bases

PROJECT = "project"
_EVERYWHERE = "everywhere"
_Statement = TypeVar("_Statement", Select[Any], CompoundSelect[Any])
_job = jobs.alias("job_of_row")


def everywhere(statement: _Statement) -> _Statement:
    """The statement as it is, also where the connection is a project's: for what all projects share, as the memory of
    devices. Nothing that it finds may reach a user."""
    return statement.execution_options(**{_EVERYWHERE: True})


def confine_statement(
    connection: Connection, statement: Any, many: Any, one: Any, options: Any
) -> tuple[Any, Any, Any]:
    """SQLAlchemy's event `before_execute`."""
    project = connection.get_execution_options().get(PROJECT)
    if project is not None and not options.get(_EVERYWHERE):
        statement = confined(statement, project)
    return statement, many, one


def confined(statement: Any, project: str) -> Any:
    """The statement for this project alone. What is neither a query nor a change of rows is returned as it is."""
    if isinstance(statement, Insert):
        if PROJECT in statement.table.c:
            return statement.values({PROJECT: project})
        return statement

    def confine_query(query: Select[Any]) -> None:
        for table, is_outer in _sources(query).items():
            criterion = _criterion(table, project, is_outer=is_outer)
            if criterion is not None:
                if is_outer:
                    criterion = or_(criterion, _key(table).is_(None))
                query._where_criteria = (*query._where_criteria, criterion)

    def confine_change(change: Update | Delete) -> None:
        assert isinstance(change.table, Table)
        criterion = _criterion(change.table, project, is_change=True)
        if criterion is not None:
            change._where_criteria = (*change._where_criteria, criterion)

    how: Any = {"select": confine_query, "update": confine_change, "delete": confine_change}
    return visitors.cloned_traverse(statement, {}, how)


def _sources(query: Select[Any]) -> dict[FromClause, bool]:
    """The tables and aliases of tables that a query reads, and whether an outer join may leave them out. Queries in it
    are confined by themselves. (`get_final_froms` finds the same and takes 15 times as long.)"""
    found: dict[FromClause, bool] = {}
    parts = (*query._from_obj, *query._raw_columns, *query._where_criteria)
    sources = [source for part in parts for source in part._from_objects]
    for joined in [source for source in sources if isinstance(source, Join)]:
        _add(found, joined, is_outer=False)
    for target, _, _, how in query._setup_joins:
        _add(found, target, is_outer=bool(how["isouter"] or how["full"]))  # type: ignore[arg-type]
    for source in sources:
        _add(found, source, is_outer=False)
    return found


def _add(found: dict[FromClause, bool], source: FromClause, *, is_outer: bool) -> None:
    """Add the tables of a FROM clause that are not known as parts of a join already."""
    if isinstance(source, Join):
        _add(found, source.left, is_outer=is_outer or source.full)
        _add(found, source.right, is_outer=is_outer or source.isouter or source.full)
    elif isinstance(source, Table) or (isinstance(source, Alias) and isinstance(source.element, Table)):
        found.setdefault(source, is_outer)


def _criterion(
    table: FromClause, project: str, *, is_change: bool = False, is_outer: bool = False
) -> ColumnElement[bool] | None:
    """What a row of the project has; None where the table's rows are of no project. `is_outer`: what is joined to it
    stays without it, so that an adapter is listed although its base was taken from the project."""
    if PROJECT in table.c:
        mine: ColumnElement[bool] = table.c[PROJECT] == project
        if _original(table) is engines and not is_change:
            is_base = table.c[PROJECT].is_(None)
            return or_(mine, is_base if is_outer else and_(is_base, _may_use(table.c["name"], project)))
        return mine
    if "job_id" in table.c and any(key.references(jobs) for key in _original(table).c["job_id"].foreign_keys):
        return exists().where(_job.c.id == table.c["job_id"], _job.c[PROJECT] == project)
    return None


def _may_use(base: ColumnElement[str], project: str) -> ColumnElement[bool]:
    """A base is everybody's but of the projects that are limited to others (`store.bases`)."""
    named = select(project_bases.c.base).where(project_bases.c[PROJECT] == project)
    return or_(~named.exists(), base.in_(named))


def _original(table: FromClause) -> Table:
    found = table.element if isinstance(table, Alias) else table
    assert isinstance(found, Table)
    return found


def _key(table: FromClause) -> ColumnElement[Any]:
    """A column that is null only in the row that an outer join makes up."""
    first = next(iter(_original(table).primary_key.columns))
    assert isinstance(first, Column)
    return table.c[first.name]
