"""Syntheses: a teacher that is served here makes training rows of the rows of a file, which are a new file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic import BaseModel

from tunewright.engine.command import inner_socket
from tunewright.graders.models import AnyGrader, item_references
from tunewright.ids import id_for_key
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.gateway import AskedModel
from tunewright.jobs.products import Product
from tunewright.kinds.data import inspect_apart
from tunewright.kinds.evaluation.suites import fitting
from tunewright.kinds.grading import missing_item
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated
from tunewright.kinds.products import name_of_made_file, place_file
from tunewright.kinds.shares import places_at
from tunewright.kinds.synthesis.models import (
    DROPPED_PURPOSE,
    SOURCE_FILE,
    SynthesisPlan,
    SynthesisRequest,
    SynthesisResult,
)
from tunewright.registry.bases import BaseInfo
from tunewright.rows.canonical import RowKind
from tunewright.rows.formats import FileReport
from tunewright.rows.reading import Reading
from tunewright.store.file_lineages import SynthesisLineage
from tunewright.store.records import Job
from tunewright.store.states import FileStatus
from tunewright.synthesizer.folder import SynthesisSpec, Synthesized, dropped_file, made_file
from tunewright.synthesizer.product import ITEM
from tunewright.synthesizer.report import SynthesisReport
from tunewright.synthesizer.tasks import MOST_REQUESTS, AnswersTask, RowsTask, requests_of, why_unusable

MEMORY = 2 * 2**30
"""Bytes that the process may take: most for the answers, which it has in memory."""
MOST_SHOWN = 20_000
"""Rows that are drawn for the task rows where the request does not say how many."""
_MAX_TOKENS = 1024


class Synthesis(Kind):
    name = "synthesis"
    id_prefix, event_prefix = "synth", "synthevent"
    noun, product = "synthesis", "file"
    request, resolved, result, report = SynthesisRequest, SynthesisPlan, SynthesisResult, SynthesisReport
    needs_base = imports_torch = False
    own_places = 1
    path = "/v1/syntheses"
    module, process = "tunewright.synthesizer", "synthesizer"
    saves = "its last answer"
    on_kill = "draw fewer rows with `rows`, or ask for fewer with `count`"

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        assert isinstance(request, SynthesisRequest)
        return request.teacher.name

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        request = request_of(job)
        engine = service.store.engines.get(request.teacher.engine)
        info = engine.info if engine is not None else None
        has_template = info is None or info.has_chat_template
        if not has_template and not isinstance(request.task, AnswersTask):
            text = f"{request.teacher.name} has no chat template, so that it cannot be told what to write"
            raise JobRefused("no_chat_template", text, "model")
        found = _checked(service, job, has_template)
        asked = requests_of(request.task, min(request.rows or found.rows, found.rows))
        if asked > MOST_REQUESTS:
            text = f"the teacher would be asked {asked} times, and may be {MOST_REQUESTS} times: draw fewer `rows`"
            raise JobRefused("too_many_requests", text, "rows")
        plan = SynthesisPlan(
            rows_in_file=found.rows,
            has_template=has_template,
            max_tokens=request.max_tokens or fitting(_MAX_TOKENS, [engine] if engine is not None else []),
        )
        return Validated(plan, f"File validated ({found.rows} rows)")

    def spec(self, service: Service, job: Job, base: BaseInfo) -> SynthesisSpec:
        request, plan = request_of(job), job.resolved
        assert isinstance(plan, SynthesisPlan), f"{job.id} was not validated"
        engine = service.store.engines.get(request.teacher.engine)
        return SynthesisSpec(
            job_id=job.id,
            socket=str(inner_socket(service.workspace.path)),
            project=job.project,
            key=job.api_key_id,
            request_timeout=service.settings.server.request_timeout,
            teacher=AskedModel(
                name=request.teacher.name,
                content=request.teacher.content,
                at_once=places_at(engine) if engine is not None else 1,
            ),
            has_template=plan.has_template,
            file=str(service.workspace.file(source_of(job))),
            reading=reading_of(job, plan.has_template),
            rows_in_file=plan.rows_in_file,
            rows=request.rows or (MOST_SHOWN if isinstance(request.task, RowsTask) else None),
            task=request.task,
            deduplicate=request.deduplicate,
            seed=job.seed,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=plan.max_tokens,
            python_graders=service.settings.jobs.python_graders,
            memory_bytes=MEMORY,
        )

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_result(Synthesized)
        assert outcome is not None, "only what has succeeded is published"
        assert outcome.made is not None, "it has made rows"
        workspace, request = service.workspace, request_of(job)
        report = SynthesisReport.model_validate(outcome.report)
        made = id_for_key("file", f"{job.id} made")
        rows = [
            {
                **_row(
                    made, name_of_made_file(request.filename, request.task.type), "fine-tune", outcome.made
                ),
                "report": outcome.made.check,
                "lineage": asdict(_lineage(job, report)),
            }
        ]
        dropped = id_for_key("file", f"{job.id} dropped") if outcome.dropped is not None else None
        if dropped is not None and outcome.dropped is not None:
            rows.append(_row(dropped, f"{job.id}_dropped.jsonl", DROPPED_PURPOSE, outcome.dropped))
        with ExitStack() as kept:
            for row, path in zip(rows, (made_file(folder), dropped_file(folder)), strict=False):
                kept.enter_context(workspace.keeping(row["id"]))
                place_file(workspace, path, row["id"])
            result = SynthesisResult(file=made, dropped_file=dropped)
            is_listed = service.store.jobs.succeed(job.id, result, report=outcome.report, files=rows)
        if not is_listed:  # it was cancelled
            for row in rows:
                workspace.remove_file(row["id"], partial(service.store.files.get, row["id"]))


def request_of(job: Job) -> SynthesisRequest:
    assert isinstance(job.request, SynthesisRequest), f"{job.id} is no synthesis"
    return job.request


def source_of(job: Job) -> str:
    """The id of the source."""
    id = job.file(SOURCE_FILE)
    assert id is not None, "every synthesis has a file"
    return id


def reading_of(job: Job, has_template: bool) -> Reading:
    """How the source is read for a teacher with a chat template, or without one."""
    return request_of(job).data.reading(has_template)


def _checked(service: Service, job: Job, has_template: bool) -> FileReport:
    """What is in the source. Raises JobRefused where the task, or the teacher, cannot work on it."""
    request, path = request_of(job), service.workspace.file(source_of(job))
    reading = reading_of(job, has_template)
    try:
        with path.open("rb") as file:
            found = inspect_apart(file, reading)
    except OSError as error:
        raise JobRefused("invalid_file", f"the file cannot be read: {error.strerror}", SOURCE_FILE) from error
    problem = found.problem or why_unusable(request.task, str(found.format), str(found.kind))
    if problem is not None:
        raise JobRefused("invalid_file", problem, SOURCE_FILE)
    if found.has_messages and not has_template:
        text = f"{request.teacher.name} has no chat template: it continues texts, and the file has messages"
        raise JobRefused("no_chat_template", text, SOURCE_FILE)
    task = request.task
    if isinstance(task, AnswersTask) and task.grader is not None:
        missing = unknown_item(task.grader, str(found.kind))
        if missing is None and found.kind is RowKind.GRADED:
            missing = missing_item(path, reading, task.grader, known=ITEM)
        if missing is not None:
            raise JobRefused("invalid_grader", missing, "task.grader")
    return found


def unknown_item(grader: AnyGrader, kind: str) -> str | None:
    """What the grader refers to that rows of this kind do not have, in words; None where there is nothing, or the rows
    have fields of their own."""
    if RowKind(kind) is RowKind.GRADED:
        return None
    for reference in item_references(grader):
        if reference.keys[0] not in ITEM or len(reference.keys) > 1:
            return f"the grader refers to {reference}: of a row there are item.asked and item.expected"
    return None


def _row(id: str, filename: str, purpose: str, product: Product) -> dict[str, Any]:
    return {
        "id": id,
        "filename": filename,
        "purpose": purpose,
        "bytes": product.bytes,
        "sha256": product.sha256,
        "status": FileStatus.PROCESSED,
    }


def _lineage(job: Job, report: SynthesisReport) -> SynthesisLineage:
    request = request_of(job)
    return SynthesisLineage(
        synthesis=job.id,
        file=source_of(job),
        filename=request.filename,
        sha256=request.sha256,
        task=request.task.model_dump(mode="json", exclude_none=True),
        teacher=request.teacher.name,
        teacher_content=request.teacher.content,
        prompts_version=report.prompts_version,
        seed=job.seed,
        rows_before=report.rows_in_file,
        rows_after=report.rows_made,
    )
