"""The routes of the API: what each sends and how its answer is parsed. Nothing is sent here.

The routes of deployments are in `deployments.py`, those of ratings in `ratings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from ..types import (
    Adapter,
    Alias,
    AliasVersion,
    ChatCompletion,
    Checkpoint,
    Completion,
    DataReport,
    Deleted,
    File,
    GraderRun,
    JobEvent,
    Model,
    Pipeline,
    Plan,
    Ready,
    ShadowAnswer,
    WorkRecord,
)
from .call import Call
from .pages import PageData, list_call
from .upload import FileInput, Upload

M = TypeVar("M", bound=BaseModel)
J = TypeVar("J", bound=WorkRecord)
ParseJob = Callable[[Any], J]
"""Makes a record of a job's JSON and binds it to the client that read it."""

JOBS = "/fine_tuning/jobs"
EXPORTS = "/exports"
CLEANINGS = "/cleanings"
EVALUATIONS = "/evaluations"
SYNTHESES = "/syntheses"
GRADERS = "/fine_tuning/alpha/graders"
EVENT_STREAM = {"accept": "text/event-stream", "cache-control": "no-store"}


def _as(model: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda response: model.model_validate_json(response.content)


def path_of(*parts: str) -> str:
    """A path of quoted parts. Raises ValueError for an empty part: the path would name the whole collection."""
    if not all(parts):
        raise ValueError("an id or name must not be empty")
    return "/" + "/".join(quote(part, safe="") for part in parts)


# Files


def upload_file(
    file: FileInput,
    purpose: str,
    filename: str | None,
    idempotency_key: str | None = None,
    expires_after: int | None = None,
) -> Call[File]:
    """`expires_after` is in seconds. Raises FileNotFoundError or TypeError for a file that cannot be uploaded."""
    fields = {"purpose": purpose}
    if expires_after is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after)}
    upload = Upload.of(file, filename, fields)
    return Call("POST", "/files", _as(File), upload=upload, slow=True, idempotency_key=idempotency_key)


def list_files(
    purpose: str | None, after: str | None, limit: int | None, order: str | None
) -> Call[PageData[File]]:
    params = {"purpose": purpose, "after": after, "limit": limit, "order": order}
    return list_call("/files", File.model_validate, params)


def retrieve_file(file_id: str) -> Call[File]:
    return Call("GET", path_of("files", file_id), _as(File))


def file_content(file_id: str) -> Call[bytes]:
    path = path_of("files", file_id) + "/content"
    return Call("GET", path, lambda response: response.content, slow=True, headers={"accept": "*/*"})


def file_report(file_id: str, options: Mapping[str, Any]) -> Call[DataReport]:
    path = path_of("files", file_id) + "/report"
    return Call("GET", path, _as(DataReport), params=_report_query(options), slow=True)


def file_report_picture(file_id: str, options: Mapping[str, Any]) -> Call[str]:
    path = path_of("files", file_id) + "/report.svg"
    params, headers = _report_query(options), {"accept": "image/svg+xml"}
    return Call("GET", path, lambda response: response.text, params=params, headers=headers, slow=True)


def _report_query(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings become `name[key]=value`."""
    query: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            query |= {f"{name}[{key}]": text for key, text in cast(Mapping[str, str], value).items()}
        else:
            query[name] = value
    return query


def delete_file(file_id: str) -> Call[Deleted]:
    return Call("DELETE", path_of("files", file_id), _as(Deleted))


# Jobs of all kinds; `path` is the path of the collection


def create_job(
    path: str, parse: ParseJob[J], body: Mapping[str, Any], idempotency_key: str | None
) -> Call[J]:
    return Call("POST", path, _job(parse), json=body, idempotency_key=idempotency_key)


def create_plan(body: Mapping[str, Any]) -> Call[Plan]:
    return Call("POST", "/fine_tuning/plan", _as(Plan), json=body, slow=True)


def retrieve_pipeline(id: str) -> Call[Pipeline]:
    return Call("GET", f"/fine_tuning/pipelines{path_of(id)}", _as(Pipeline))


def cancel_pipeline(id: str) -> Call[Pipeline]:
    return Call("POST", f"/fine_tuning/pipelines{path_of(id)}/cancel", _as(Pipeline))


def list_jobs(
    path: str, parse: ParseJob[J], after: str | None, limit: int | None, metadata: Mapping[str, str] | None
) -> Call[PageData[J]]:
    wanted = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
    return list_call(path, parse, {"after": after, "limit": limit, **wanted})


def retrieve_job(path: str, parse: ParseJob[J], job_id: str) -> Call[J]:
    return Call("GET", path + path_of(job_id), _job(parse))


def act_on_job(path: str, parse: ParseJob[J], job_id: str, action: str) -> Call[J]:
    """`action` is cancel, pause or resume."""
    return Call("POST", f"{path}{path_of(job_id)}/{action}", _job(parse))


def list_events(path: str, job_id: str, after: str | None, limit: int | None) -> Call[PageData[JobEvent]]:
    path = f"{path}{path_of(job_id)}/events"
    return list_call(path, JobEvent.model_validate, {"after": after, "limit": limit})


def stream_events(path: str, job_id: str, after: str | None) -> Call[None]:
    headers = {**EVENT_STREAM, "last-event-id": after} if after else EVENT_STREAM
    path = f"{path}{path_of(job_id)}/events"
    params = {"stream": "true", "after": after}
    return Call("GET", path, lambda _: None, params=params, headers=headers, stream=True)


def job_logs(path: str, job_id: str, tail: int | None) -> Call[str]:
    return text_of(f"{path}{path_of(job_id)}/logs", {"tail": tail})


def text_of(path: str, params: Mapping[str, int | None]) -> Call[str]:
    """A log; bytes that are no UTF-8 are replaced."""
    return Call(
        "GET",
        path,
        lambda response: response.content.decode("utf-8", "replace"),
        params=params,
        headers={"accept": "text/plain"},
    )


def download_tensorboard(job_id: str) -> Call[None]:
    return _download(JOBS + path_of(job_id), "/tensorboard")


def list_checkpoints(job_id: str, after: str | None, limit: int | None) -> Call[PageData[Checkpoint]]:
    path = f"{JOBS}{path_of(job_id)}/checkpoints"
    return list_call(path, Checkpoint.model_validate, {"after": after, "limit": limit})


def _job(parse: ParseJob[J]) -> Callable[[httpx2.Response], J]:
    return lambda response: parse(response.json())


# Adapters and models


def upload_adapter(
    source: FileInput, load: bool, idempotency_key: str | None, **others: str | None
) -> Call[Adapter]:
    """`others` are the other fields of the form; those that are None are left out. Raises FileNotFoundError or
    TypeError for a file that cannot be uploaded."""
    fields = {**others, "load": "true" if load else "false"}
    upload = Upload.of_adapter(source, {name: value for name, value in fields.items() if value is not None})
    return Call(
        "POST", "/adapters/upload", _as(Adapter), upload=upload, slow=True, idempotency_key=idempotency_key
    )


def register_adapter(load: bool, idempotency_key: str | None, **fields: str | None) -> Call[Adapter]:
    """`fields` are the other fields of the body; those that are None are left out."""
    body = {name: value for name, value in fields.items() if value is not None}
    return Call(
        "POST",
        "/adapters",
        _as(Adapter),
        json={**body, "load": load},
        slow=True,
        idempotency_key=idempotency_key,
    )


def list_adapters(
    after: str | None, limit: int | None, **filters: str | bool | None
) -> Call[PageData[Adapter]]:
    return list_call("/adapters", Adapter.model_validate, {**filters, "after": after, "limit": limit})


def retrieve_adapter(adapter: str) -> Call[Adapter]:
    return Call("GET", path_of("adapters", adapter), _as(Adapter))


def act_on_adapter(adapter: str, action: str, force: bool = False) -> Call[Adapter]:
    """`action` is load, unload, pin, unpin or check."""
    path = f"{path_of('adapters', adapter)}/{action}"
    return Call("POST", path, _as(Adapter), params=_forced(force), slow=True)


def delete_adapter(adapter: str, force: bool) -> Call[Deleted]:
    return Call("DELETE", path_of("adapters", adapter), _as(Deleted), params=_forced(force), slow=True)


def download_adapter(adapter: str) -> Call[None]:
    return _download(path_of("adapters", adapter))


def list_models() -> Call[PageData[Model]]:
    return list_call("/models", Model.model_validate, {})


def retrieve_model(name: str) -> Call[Model]:
    return Call("GET", path_of("models", name), _as(Model))


def model_report(name: str) -> Call[str]:
    path = path_of("models", name) + "/report"
    return Call("GET", path, lambda response: response.text, headers={"accept": "text/html"}, slow=True)


def model_card(name: str) -> Call[str]:
    path = path_of("models", name) + "/card"
    return Call("GET", path, lambda response: response.text, headers={"accept": "text/markdown"}, slow=True)


def delete_model(name: str, force: bool) -> Call[Deleted]:
    return Call("DELETE", path_of("models", name), _as(Deleted), params=_forced(force), slow=True)


def _forced(force: bool) -> dict[str, str | None]:
    return {"force": "true" if force else None}


def download_model(name: str) -> Call[None]:
    return _download(path_of("models", name))


def _download(path: str, what: str = "/download") -> Call[None]:
    return Call(
        "GET",
        path + what,
        lambda _: None,
        headers={"accept": "application/x-tar", "accept-encoding": "identity"},
        stream=True,
        first_byte=True,
        slow=True,
    )


# Aliases


def set_alias(name: str, body: Mapping[str, Any], user: str | None) -> Call[Alias]:
    """The server answers after it has loaded the targets."""
    return Call("PUT", path_of("aliases", name), _as(Alias), json=body, headers=_by(user), slow=True)


def list_aliases(after: str | None, limit: int | None) -> Call[PageData[Alias]]:
    return list_call("/aliases", Alias.model_validate, {"after": after, "limit": limit})


def retrieve_alias(name: str) -> Call[Alias]:
    return Call("GET", path_of("aliases", name), _as(Alias))


def alias_history(name: str, after: int | None, limit: int | None) -> Call[PageData[AliasVersion]]:
    path = path_of("aliases", name) + "/history"
    return list_call(path, AliasVersion.model_validate, {"after": after, "limit": limit})


def roll_back_alias(name: str, body: Mapping[str, Any], user: str | None) -> Call[Alias]:
    path = path_of("aliases", name) + "/rollback"
    return Call("POST", path, _as(Alias), json=body, headers=_by(user), slow=True)


def delete_alias(name: str, user: str | None) -> Call[Deleted]:
    return Call("DELETE", path_of("aliases", name), _as(Deleted), headers=_by(user))


def shadow_answers(name: str, after: str | None, limit: int | None) -> Call[PageData[ShadowAnswer]]:
    path = path_of("aliases", name) + "/shadow"
    return list_call(path, ShadowAnswer.model_validate, {"after": after, "limit": limit})


def _by(user: str | None) -> dict[str, str]:
    return {"x-tunewright-user": user} if user else {}


# Graders


def run_grader(
    grader: Mapping[str, Any], model_sample: str, item: Mapping[str, Any] | None
) -> Call[GraderRun]:
    body = {
        "grader": dict(grader),
        "model_sample": model_sample,
        "item": dict(item) if item is not None else None,
    }
    return Call("POST", f"{GRADERS}/run", _as(GraderRun), json=body, slow=True)


def validate_grader(grader: Mapping[str, Any]) -> Call[dict[str, Any]]:
    def parse(response: httpx2.Response) -> dict[str, Any]:
        return cast("dict[str, Any]", response.json()["grader"])

    return Call("POST", f"{GRADERS}/validate", parse, json={"grader": dict(grader)}, slow=True)


# Generations


def chat(
    model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> Call[ChatCompletion]:
    body = {"model": model, "messages": [dict(message) for message in messages], **params}
    return Call("POST", "/chat/completions", _as(ChatCompletion), json=body, slow=True)


def complete(model: str, prompt: str | Sequence[Any], params: Mapping[str, Any]) -> Call[Completion]:
    body = {"model": model, "prompt": prompt, **params}
    return Call("POST", "/completions", _as(Completion), json=body, slow=True)


def streamed(call: Call[Any]) -> Call[None]:
    """The same generation as a stream of events."""
    return Call(
        call.method,
        call.path,
        lambda _: None,
        json={**call.json, "stream": True},
        headers=EVENT_STREAM,
        stream=True,
        first_byte=True,
        slow=True,
    )


# The service


def health() -> Call[dict[str, Any]]:
    def parse(response: httpx2.Response) -> dict[str, Any]:
        body: Any = response.json()
        if not isinstance(body, dict):
            raise ValueError("not an object")
        return cast("dict[str, Any]", body)

    return Call("GET", "/health", parse, outside_v1=True)


def ready() -> Call[Ready]:
    """A 503 is no error here: its body says which parts are not ready."""
    return Call("GET", "/ready", _as(Ready), outside_v1=True, accepted=frozenset({503}))
