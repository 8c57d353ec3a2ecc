"""What jobs and plans ask about their data: how files are read, what is held out, and the chat template."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunewright.errors import InvalidRequest
from tunewright.kinds.data import DataOptions
from tunewright.rows.held_out import DEFAULT_SHARE
from tunewright.rows.reading import NAMES, TAGS
from tunewright.rows.templates import check_template
from tunewright.wire import Body

AUTO = "auto"
"""A validation file that is a part of the training file."""
Name = Annotated[str, Field(min_length=1, max_length=256)]


class FileReading(Body):
    """How the files are read, where that is not known from their rows."""

    columns: dict[str, Name] | None = Field(
        None,
        description="The column of the files for each field of a format, such as "
        '`{"prompt": "question", "completion": "answer"}`; other columns are left out. LLaMA-Factory\'s names '
        "(`query`, `response`, `kto_tag`) are known too.",
    )
    tags: dict[str, Name] | None = Field(
        None,
        description="Names in the turns of ShareGPT's conversations, as in LLaMA-Factory: role_tag, content_tag, "
        "user_tag, assistant_tag, observation_tag, function_tag, system_tag.",
    )
    alpaca: Literal["auto", "chat", "template"] = Field(
        "auto",
        description="chat: Alpaca rows become conversations. template: prompts in the text that Stanford's Alpaca was "
        "trained with. auto: chat where there is a chat template.",
    )

    @field_validator("columns", "tags")
    @classmethod
    def _check_names(cls, value: dict[str, str] | None, info: object) -> dict[str, str] | None:
        known = NAMES if getattr(info, "field_name", "") == "columns" else TAGS.keys()
        if value is not None and not value:
            raise ValueError("name at least one, or leave it out")
        for name in value or {}:
            if name not in known:
                raise ValueError(f"{name[:40]!r} is none of {', '.join(sorted(known))}")
        return value


class MixedTrainingFile(Body):
    """A training file with a weight."""

    file: str = Field(max_length=64, description="Id of an uploaded file.")
    weight: Annotated[float, Field(strict=True, ge=0.001, le=1000)] = Field(
        1.0,
        description="How often an epoch has the rows of the file: round(weight x rows) of them, at least one. 1: each "
        "once; 2: each twice; 0.5: half of them, and the other half in the next epoch.",
    )


class Data(FileReading):
    """How the files of a job are read, what is held out of them, and which further files it trains on."""

    mix: Annotated[list[MixedTrainingFile], Field(min_length=1, max_length=32)] | None = Field(
        None,
        description="Further training files, which are trained on together with `training_file`, each with a weight. "
        "`training_file` has the weight 1 unless it is listed too. All are read alike.",
    )

    validation_share: Annotated[float, Field(strict=True, gt=0, le=0.5)] | None = Field(
        None,
        description='The share of the training file to hold out, with `validation_file` "auto"; 0.05 by default.',
    )

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, value: list[MixedTrainingFile] | None) -> list[MixedTrainingFile] | None:
        seen: set[str] = set()
        for one in value or []:
            if one.file in seen:
                raise ValueError(f"{one.file[:64]} is listed twice: give it one weight")
            seen.add(one.file)
        return value


def data_options(data: Data | None, validation_file: str | None) -> DataOptions:
    """Raises InvalidRequest where a share is to be held out, and a file is given too."""
    asked = data or Data()
    share = asked.validation_share
    if share is not None and validation_file != AUTO:
        raise InvalidRequest(
            'data.validation_share is for validation_file "auto", which holds out a share of the training file.',
            param="data.validation_share",
        )
    if validation_file == AUTO and share is None:
        share = DEFAULT_SHARE
    return DataOptions(**{**asked.model_dump(), "validation_share": share})


def check_chat_template(template: str | None) -> None:
    """Raises InvalidRequest."""
    if template is not None and (why := check_template(template)):
        raise InvalidRequest(f"chat_template is no chat template: {why}.", param="chat_template")
