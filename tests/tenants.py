"""Two projects with one of everything that a project can have, for tests of what one learns of the other."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import insert

from rows import PRODUCT, create_export, create_job, engine_info
from tunewright.engine.command import EngineOptions
from tunewright.ids import new_id
from tunewright.jobs.kinds import JobError
from tunewright.kinds import EVALUATION
from tunewright.kinds.batch.kind import INPUT_FILE
from tunewright.kinds.batch.models import BatchRequest
from tunewright.kinds.cleaning.models import CleaningRequest
from tunewright.kinds.evaluation.models import EvaluatedModel, EvaluationRequest
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.kinds.synthesis.models import SynthesisRequest
from tunewright.registry.aliases import AliasTarget
from tunewright.store.audit import Audited, AuditFilter
from tunewright.store.keys import Scope
from tunewright.store.records import JobInput, NewJob
from tunewright.store.states import EngineState, JobState
from tunewright.store.store import Store
from tunewright.store.tables import job_devices, metadata
from tunewright.store.usage import UsageKey, Used, hour_of
from tunewright.synthesizer.tasks import AnswersTask

BASE = "tunewright-tiny"


@dataclass(frozen=True)
class Tenant:
    """A project, a key with every scope, and the names and ids of what it has, by what they are."""

    project: str
    key: str
    has: dict[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def told_in(self, text: str) -> list[str]:
        """What of this project a text tells."""
        return [what for what, value in self.has.items() if value in text]


def make_tenant(store: Store, mark: str) -> Tenant:
    """`mark`: a letter, which is the last in hashes."""
    project = store.projects.create(f"project-{mark}-name").id
    mine = store.of(project)
    record, key = mine.keys.create(f"key-{mark}-name", list(Scope))
    file = mine.files.add(
        id=new_id("file"), filename=f"secret-{mark}.jsonl", purpose="fine-tune", size=1,
        sha256=mark.rjust(64, "0"), created_at=1.0,
    )  # fmt: skip
    job = new_id("ftjob")
    running = create_job(
        mine, id=job, pipeline=job, base=BASE, training_file=file.id, state=JobState.RUNNING,
        metadata={"of": f"secret-{mark}"},
    )  # fmt: skip
    adapter, step = f"ft:{BASE}:{mark}:adapter1", f"ft:{BASE}:{mark}:adapter1:ckpt-step-1"
    common = {**PRODUCT, "base": BASE, "sha256": mark.rjust(64, "1")}
    # as the scheduler does it, which belongs to no project
    assert store.models.publish(
        [{**common, "name": adapter}, {**common, "name": step, "checkpoint_step": 1}],
        job_id=running.id, result=FineTuningResult(trained_tokens=7), checkpoint_metrics={1: {"train_loss": 1.0}},
        result_file={"id": new_id("file"), "filename": f"secret-{mark}.csv", "purpose": "fine-tune-results",
                     "bytes": 1, "sha256": "0" * 64},
    )  # fmt: skip
    full, weights = f"ft:{BASE}:{mark}:fullmod1", mark.rjust(64, "2")
    mine.models.register({**common, "id": new_id("model"), "name": full, "kind": "full", "sha256": weights})
    served = mine.deployments.create(full, {}, lambda _: asdict(EngineOptions(device="cpu")), sha256=weights)
    store.engines.starting(full, "/nowhere", engine_info(deployment=served.id))
    store.engines.set_state(full, EngineState.READY)
    alias = f"bot-{mark}"
    mine.aliases.put(alias, [AliasTarget(adapter)])
    mine.shadow_answers.add(
        alias=alias, model=full, answered_by=adapter, path="/", at=1.0, seconds=1.0, status=200,
        request=f"secret-{mark}", answer="",
    )  # fmt: skip
    found = mine.models.get(adapter)
    assert found is not None
    evaluated = EvaluatedModel(asked=adapter, name=adapter, engine=BASE, content="c", has_weights=True)
    evaluation = mine.jobs.create(
        NewJob(EVALUATION.name, BASE, EvaluationRequest(models=[evaluated], filename=file.filename), 1)
    )
    cleaning = mine.jobs.create(
        NewJob("cleaning", "", CleaningRequest(filename=file.filename, sha256="0", steps=[]), 1,
               (JobInput("file", file_id=file.id),))
    )  # fmt: skip
    synthesis = mine.jobs.create(
        NewJob("synthesis", "", SynthesisRequest(teacher=evaluated, filename=file.filename, sha256="0",
                                                 task=AnswersTask()), 1, (JobInput("file", file_id=file.id),))
    )  # fmt: skip
    batch = mine.jobs.create(
        NewJob("batch", "", BatchRequest(endpoint="/v1/completions", completion_window="24h", expires_at=2e9), 0,
               (JobInput(INPUT_FILE, file_id=file.id),))
    )  # fmt: skip
    upload = mine.uploads.create(
        id=new_id("upload"), filename=f"secret-{mark}.jsonl", purpose="batch", bytes=1, created_at=1.0,
        expires_at=2e9, file_seconds=None,
    )  # fmt: skip
    endpoint = mine.webhooks.create_endpoint(
        {"id": new_id("webhook"), "name": f"secret-{mark}", "url": "https://a.example", "salt": "0" * 32,
         "event_types": ["export.failed"], "hint": "hint"}
    )  # fmt: skip
    export = create_export(mine, (adapter, common["sha256"]))
    # as the scheduler does it
    store.jobs.fail(export.id, JobError(code="x", message="why"))
    (delivery,), _ = mine.webhooks.deliveries()
    store.audit.add(
        [Audited("resource.created", project, record.id, path="/v1/files", method="POST", resource=file.id)]
    )
    (logged,), _ = mine.audit.list(AuditFilter())
    used = UsageKey(hour_of(time.time()), project, record.id, adapter, "completions", "live")
    store.usage.add({used: Used(1, 7, 3)})
    with store.database.begin() as connection:
        gpu = {"device": f"cuda:{mark}", "job_id": cleaning.id, "since": time.time() - 60}
        connection.execute(insert(job_devices).values(**gpu))
    store.jobs.release(cleaning.id)
    unfinished = create_job(mine, base="missing", training_file=file.id, fingerprint="other")
    return Tenant(
        project,
        key,
        {
            "project": project,
            "key": record.id,
            "project's name": f"project-{mark}-name",
            "mark": f"secret-{mark}",
            "file": file.id,
            "job": job,
            "unfinished": unfinished.id,
            "adapter": adapter,
            "adapter's id": found.id,
            "checkpoint": step,
            "full": full,
            "deployment": served.id,
            "alias": alias,
            "export": export.id,
            "batch": batch.id,
            "upload": upload.id,
            "webhook": endpoint.id,
            "delivery": delivery.id,
            "evaluation": evaluation.id,
            "cleaning": cleaning.id,
            "synthesis": synthesis.id,
            "audit log": logged.id,
        },
    )


def rows_of(store: Store, project: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a project, by table."""
    found = {}
    with store.database.read() as connection:
        for table in metadata.sorted_tables:
            if "project" in table.c:
                mine = f"SELECT * FROM {table.name} WHERE project = '{project}'"
                found[table.name] = [tuple(row) for row in connection.exec_driver_sql(mine)]
    return found
