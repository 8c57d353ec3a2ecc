"""The options of where the data lies: the data folder, the database, the bucket of artifacts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from tunewright.config.group import Group
from tunewright.sizes import Size

_ARTIFACTS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()-]+)*/?")
_ENDPOINT = re.compile(r"https?://[^/\s@?#]+/?")


def database_url_in(data_dir: Path) -> str:
    """The URL of the database that lies in a data folder."""
    return f"sqlite:///{data_dir / 'tunewright.db'}"


class StorageOptions(Group):
    """Where the data lies."""

    data_dir: Path = Field(
        Path("tunewright-data"), description="Folder of the database, files, jobs and adapters."
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the database. Default: SQLite in the data folder."
    )
    artifacts: str | None = Field(
        None,
        description="s3://BUCKET/PREFIX where adapters and full models are stored; the data folder keeps those used"
        " last. Credentials are those of the AWS SDKs (AWS_ACCESS_KEY_ID, ~/.aws, ...). Default: the data folder.",
    )
    artifacts_endpoint: str | None = Field(
        None,
        description="Address of the S3 service of --artifacts where it is not Amazon's: https://s3.example:9000, say.",
    )
    files_in_bucket: bool = Field(
        False,
        description="With --artifacts: whether uploaded files and results are stored there too; the data folder keeps"
        " those used last.",
    )
    max_file_cache_size: Size = Field(
        "64GiB",
        validate_default=True,
        description="With --files-in-bucket: size of the files in the data folder above which those used longest ago"
        " are removed from there that nothing uses.",
    )
    max_artifact_cache_size: Size = Field(
        "64GiB",
        validate_default=True,
        description="With --artifacts: size of the artifacts in the data folder above which those used longest ago are"
        " removed from there that nothing uses.",
    )

    take_over_artifacts: str | None = Field(
        None,
        pattern=r"^([0-9a-f]{32}|unmarked)$",
        description="With --artifacts: the service whose artifacts this one takes over, as its refusal to start names"
        " it. It stays harmless in later starts.",
    )

    @field_validator("artifacts", "artifacts_endpoint", "take_over_artifacts", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """Compose files pass on variables that are not set as empty ones."""
        return value or None

    @field_validator("artifacts")
    @classmethod
    def _check_artifacts(cls, value: str | None) -> str | None:
        if value is not None and (not _ARTIFACTS.fullmatch(value) or {".", ".."} & set(value.split("/"))):
            raise ValueError("write it as s3://BUCKET or s3://BUCKET/PREFIX, without credentials")
        return value

    @field_validator("artifacts_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not _ENDPOINT.fullmatch(value):
            raise ValueError("write it as https://HOST or https://HOST:PORT, without a path and credentials")
        return value

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if self.files_in_bucket and self.artifacts is None:
            raise ValueError("--files-in-bucket needs a bucket: set --artifacts too")
        return self

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or database_url_in(self.data_dir)
