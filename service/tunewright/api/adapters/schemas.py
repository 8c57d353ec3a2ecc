"""The request that registers an adapter, and an adapter's lineage."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tunewright.store.records import Lineage, TunedModel
from tunewright.wire import Body, Wire

Suffix = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="Goes into the model's name: up to 64 letters, digits, dots, dashes, underscores.",
    ),
]
BASE = (
    "Name of the base it is for. Default: the one that `base_model_name_or_path` in its config names, or the only "
    "one."
)
FOLDER = "The archive's folder with the adapter, or the end of its path, as checkpoint-200. Default: the highest one."
LOAD = "Load it into the engine of its base at once, and after every restart."


class RegisterAdapter(Body):
    """An adapter that the server can reach by itself: give `path` or `hub_id`."""

    path: str | None = Field(
        None,
        max_length=4096,
        description="Full path of a PEFT folder on the server, within an `--adapter-root`.",
    )
    hub_id: str | None = Field(None, max_length=200, description="Repository on the hub: org/name.")
    revision: str | None = Field(None, max_length=200, description="Branch, tag or commit on the hub.")
    base: str | None = Field(None, max_length=128, description=BASE)
    suffix: Suffix | None = None
    load: bool = Field(True, strict=True, description=LOAD)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("give `path` or `hub_id`, one of them (files are sent to /v1/adapters/upload)")
        if self.revision is not None and self.hub_id is None:
            raise ValueError("`revision` goes with `hub_id`")
        return self


class LineageObject(Wire):
    """What an adapter was made from; null where it does not apply or is not known."""

    base_fingerprint: str = Field(description="Hash of the base's config, tokenizer and layout of weights.")
    parent_sha256: str | None = Field(description="The weights that its training started from.")
    training_file: str | None
    training_sha256: str | None
    validation_file: str | None
    validation_sha256: str | None
    mix: list[dict[str, Any]] | None = Field(
        None,
        description="Where there were several training files: file, sha256 and weight of each, and its examples in an "
        "epoch.",
    )
    seed: int | None
    metrics: dict[str, float] | None = Field(description="The last losses and accuracies of its training.")
    origin: str | None = Field(
        description="For a registered adapter: the file's name, the folder or the hub's id."
    )
    revision: str | None = Field(description="The hub's commit.")
    created_by: str | None
    models: list[dict[str, Any]] | None = Field(
        None, description="The adapters that an export was made from: model, sha256 and weight of each."
    )

    @classmethod
    def of(cls, model: TunedModel) -> LineageObject:
        return cls(base_fingerprint=model.base_fingerprint, **vars(model.lineage or Lineage()))
