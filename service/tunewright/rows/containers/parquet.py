"""Parquet, in batches of some megabytes and with the wanted columns only. Imports pyarrow when it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, BinaryIO
from uuid import UUID

from tunewright.rows.containers.raw import Raw
from tunewright.rows.faults import InvalidData, RowFault, listed

_BATCH, _MOST_ROWS = 4 * 2**20, 256
"""Bytes, about, and rows that are decoded at a time."""
_BUFFER = 2**20
_DEEPEST = 100
_TYPES = {bytes: "binary", float: "number", Decimal: "decimal", UUID: "UUID"}
"""What messages call the types that JSON does not have, beside dates and times."""


def parquet_rows(file: BinaryIO, columns: Set[str] | None) -> Iterator[Raw]:
    """The rows, as objects; without `columns`, all columns. Raises InvalidData where the file cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        names: list[str] = table.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name in columns]
        if not wanted and table.metadata.num_rows:
            raise InvalidData(
                f"the Parquet file has none of the columns that training data has; it has {listed(names)}: name them "
                'in data.columns, such as {"prompt": "question", "completion": "answer"}'
            )
        number = 0
        for batch in table.iter_batches(_batch_rows(table.metadata), columns=wanted, use_threads=False):
            for value, size in _values(batch):
                number += 1
                yield Raw(number, size, value)
    except pyarrow.ArrowMemoryError:  # of a process with limits
        raise
    except (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
    ) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InvalidData(f"the Parquet file is damaged, or of a kind that is not read ({reason})") from None


def _batch_rows(metadata: Any) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    each = max(size // max(metadata.num_rows, 1), 1)
    return int(min(max(_BATCH // each, 1), _MOST_ROWS))


def _values(batch: Any) -> Iterator[tuple[object, int]]:
    size = batch.nbytes // max(len(batch), 1)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is no UTF-8, times out of range
        rows = [_single(batch, index) for index in range(len(batch))]
    for row in rows:
        yield (row if isinstance(row, RowFault) else _json(row)), size


def _single(batch: Any, index: int) -> object:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return RowFault(f"a value cannot be read ({error})")


def _json(row: dict[str, object]) -> object:
    try:
        return {str(name): _plain(value) for name, value in row.items()}
    except RowFault as fault:
        return fault


def _plain(value: object, depth: int = 0) -> object:
    """The value as JSON has it, without the nulls of objects: in a table, all have the fields of each."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if depth > _DEEPEST:
        raise RowFault("nested too deeply")
    if isinstance(value, dict):
        return {str(name): _plain(part, depth + 1) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part, depth + 1) for part in value]
    if isinstance(value, float) and math.isfinite(value):
        return value
    shown = value[:20].hex(" ") if isinstance(value, bytes) else str(value)[:40]
    is_time = isinstance(value, date | time | timedelta)
    name = "date or time" if is_time else _TYPES.get(type(value), type(value).__name__)
    raise RowFault(f"a value of type {name} ({shown}) has no place in JSON")
