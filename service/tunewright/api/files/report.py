"""`/v1/files/{id}/report`: what is in a file, in tokens of a model; and its histogram as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import ValidationError

from tunewright.api.files.find import find_file, not_found
from tunewright.api.files.schemas import ReportObject
from tunewright.api.fine_tuning.data import Data, check_chat_template, data_options
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.queries import Pairs
from tunewright.api.models.bases import named_base
from tunewright.engine.trust import trusts_code
from tunewright.errors import InvalidRequest
from tunewright.kinds.data import DataOptions
from tunewright.kinds.data_report import SHORTEST, Asked, report_file
from tunewright.rows.report.models import DataReport
from tunewright.rows.report.picture import picture
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus
from tunewright.wire import Text

router = APIRouter(prefix="/v1/files", tags=["Files"])

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Options:
    model: str | None
    max_length: int | None
    chat_template: str | None
    data: DataOptions


def _options(
    columns: Annotated[dict[str, str], Depends(Pairs("columns"))],
    tags: Annotated[dict[str, str], Depends(Pairs("tags"))],
    model: Annotated[
        Text | None, Query(max_length=512, description="A named base, for what is in tokens.")
    ] = None,
    max_length: Annotated[
        int | None,
        Query(ge=SHORTEST, description="Tokens at which a job would cut; the default is that of a job."),
    ] = None,
    chat_template: Annotated[
        Text | None, Query(max_length=16_384, description="As in a job, where it is short enough for a URL.")
    ] = None,
    alpaca: Annotated[
        Literal["auto", "chat", "template"],
        Query(description="What Alpaca rows become, as in `data` of a job."),
    ] = "auto",
) -> Options:
    if chat_template is not None and model is None:
        raise InvalidRequest(
            "chat_template is for a model: give model too, or leave it out.", param="chat_template"
        )
    given = {"columns": columns or None, "tags": tags or None, "alpaca": alpaca}
    try:
        data = Data.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        param = str(fault["loc"][0])
        raise InvalidRequest(
            f"{param}: {fault['msg'].removeprefix('Value error, ')}.", param=param
        ) from error
    return Options(model, max_length, chat_template, data_options(data, None))


Asking = Annotated[Options, Depends(_options)]
_ABOUT = (
    "`columns[field]=column` and `tags[tag]=name` say how the file is read, as `data` of a job does. A large file is "
    "read for a limited time: `is_complete` says whether all of it was."
)


@router.get(
    "/{file_id}/report",
    summary="Report on a file",
    description=f"Rows, turns, lengths, duplicates and problems by line; with a model tokens, what is cut, and rows "
    f"with their trained tokens marked. {_ABOUT}",
    responses=responses(400, 404, 429, 503),
)
async def report(context: Context, file_id: str, options: Asking) -> ReportObject:
    record, made = await context.measuring.run(report_on, context, file_id, options)
    return ReportObject(file_id=record.id, filename=record.filename, **dict(made))


@router.get(
    "/{file_id}/report.svg",
    summary="Draw the lengths of a file",
    description=f"The histogram of the report: of tokens with a model, else of characters. {_ABOUT}",
    response_class=Response,
    responses={
        200: {
            "description": "A picture, for a browser or an `<img>`.",
            "content": {"image/svg+xml": {"example": '<svg xmlns="http://www.w3.org/2000/svg">...</svg>'}},
        },
        **responses(400, 404, 429, 503),
    },
)
async def report_picture(context: Context, file_id: str, options: Asking) -> Response:
    record, made = await context.measuring.run(report_on, context, file_id, options)
    return Response(
        picture(made, record.filename),
        media_type="image/svg+xml",
        headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"},
    )


def report_on(context: ServiceContext, file_id: str, options: Options) -> tuple[FileRecord, DataReport]:
    """The file and its report, a kept one where it was made before. Raises NotFound and InvalidRequest."""
    record = find_file(context, file_id)
    if record.purpose != "fine-tune":
        raise InvalidRequest(
            f"File {record.id} is for {record.purpose}: reports are made of files for fine-tune.",
            param="file_id",
        )
    if record.status is FileStatus.UPLOADED:
        raise InvalidRequest(
            f"The rows of file {record.id} are still being checked: ask again when its status is processed or error.",
            param="file_id",
            code="file_not_processed",
        )
    check_chat_template(options.chat_template)
    base = named_base(context, options.model) if options.model is not None else None
    key = (record.sha256, options, base.fingerprint if base else None, base.chat_template if base else None)
    made = context.reports.find(repr(key))
    if made is not None:
        return record, made
    asked = Asked(
        context.workspace.fetch_file(record.id),
        source=record.sha256,
        base=base,
        data=options.data,
        chat_template=options.chat_template,
        max_length=options.max_length,
        trust_remote_code=base is not None and trusts_code(context.settings.models, context.store, base.name),
    )
    try:
        made = report_file(asked, context.workspace.token_cache)
    except FileNotFoundError:  # it was deleted meanwhile
        raise not_found(file_id) from None
    context.reports.keep(repr(key), made)
    return record, made
