"""The table of what this database owns outside itself (`store.bucket_owners`)."""

from __future__ import annotations

from sqlalchemy import Column, Float, String, Table, Text

from tunewright.store.columns import metadata

bucket_owners = Table(
    "bucket_owners",  # as whom this database owns prefixes of buckets; what a restore leaves as it is
    metadata,
    Column("place", Text, primary_key=True),  # s3://BUCKET/PREFIX
    Column("owner", String(32), nullable=False),
    Column("turn", String(16), nullable=False),  # the mark in the bucket has it, or had it before `next_turn`
    Column("next_turn", String(16), nullable=False),
    Column(
        "since", Float, nullable=False
    ),  # Unix time of the claim, or of the last restore into this database
)
