"""The tables of what generations and jobs use, summed up by hour (`store.usage`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, String, Table, Text

from tunewright.store.columns import metadata

usage = Table(
    "usage",  # generations that were answered, summed up
    metadata,
    Column("hour", BigInteger, primary_key=True),  # its beginning, Unix seconds
    Column("project", String(64), primary_key=True),
    Column("api_key_id", String(64), primary_key=True),  # "" without a key
    Column("model", Text, primary_key=True),  # the one that answered; no alias
    Column("kind", String(16), primary_key=True),  # completions | embeddings
    Column("source", String(16), primary_key=True),  # live | batch | evaluation | grader | shadow
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
)

device_usage = Table(
    "device_usage",  # the time for which jobs had GPUs
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("project", String(64), primary_key=True),
    Column("api_key_id", String(64), primary_key=True),  # that created the jobs; "" without a key
    Column("model", Text, primary_key=True),  # the base
    Column("kind", String(16), primary_key=True),  # of the jobs
    Column("seconds", Float, nullable=False),
)
