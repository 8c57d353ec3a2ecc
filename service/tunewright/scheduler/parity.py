"""The parity gate: an adapter is served only after it was seen to do in the engine what it does in peft.

For each adapter that waits (`store.checks`): a reference process (`evaluate.parity`) scores a few rows with
transformers and peft; the engine, which holds the adapter already though no request reaches it, scores the same
tokens; `evaluate.compare` judges; one transaction writes the verdict down and ends the job that waits for it.
What is held here can be lost: a killed scheduler finds the reference process, or its result, or begins again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.config import Settings
from tunewright.engine.http import EngineBusy
from tunewright.engine.leases import Leases
from tunewright.errors import StorageFull
from tunewright.evaluate.compare import Verdict
from tunewright.evaluate.folder import BaseSpec, ParitySpec, RowsFrom
from tunewright.jobs.kinds import JobError
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.judging import judge
from tunewright.scheduler.references import References
from tunewright.store.checks import Waiting
from tunewright.store.records import Engine, ResidencyRow, TunedModel
from tunewright.store.states import Desired, EngineState, ModelState, Residency
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

MAX_FAILURES = 3
"""After so many an adapter cannot be checked, and is quarantined."""
_AGAIN_AFTER, _WAIT = 5.0, 30.0
"""Seconds: after a failure, and for room."""
_AT_ONCE = 16
"""Adapters that one reference process measures."""


class NotLoaded(Exception):
    """The adapter left the engine, or is about to: try again."""


@dataclass
class _Check:
    """What is known of one check in this process."""

    judging: Future[dict[str, Any]] | None = None
    run: int = 0
    """Of the engine that is asked."""
    failures: int = 0
    not_before: float = 0.0
    refused_at: set[float] = field(default_factory=set)
    """When the engine refused to load the adapter."""
    lost_runs: set[int] = field(default_factory=set)
    """Of the engine, which stopped answering when it was asked."""


class ParityGate:
    """A part of the scheduler's loop; `tick()` never blocks for long."""

    def __init__(
        self, settings: Settings, store: Store, workspace: Workspace, lifeline: int, devices: Devices
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._devices = devices
        self._references = References(settings.jobs, workspace, lifeline, devices)
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parity")
        self._checks: dict[str, _Check] = {id: _Check() for id in self._references.ids()}

    def tick(self) -> None:
        waiting = {one.model.id: one for one in self._store.checks.waiting()}
        for id in self._checks.keys() - waiting.keys():
            self._forget(id)  # deleted or cancelled meanwhile
        unmeasured = []
        for one in waiting.values():
            check = self._checks.setdefault(one.model.id, _Check())
            try:
                if not self._settings.parity.is_on and not one.is_asked:
                    self._not_checked(one, "the check is switched off (--parity)", quarantine=False)
                elif time.monotonic() >= check.not_before and self._go_on(one, check):
                    unmeasured.append(one)
            except StorageFull as error:
                log.warning("checking %s: %s; trying again", one.model.name, error)
                check.not_before = time.monotonic() + _WAIT
        if unmeasured and not self._references.is_running:
            self._start_reference(unmeasured)
        self._watch_reference(waiting)

    def stop(self) -> None:
        """What runs begins again at the next start."""
        self._references.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _go_on(self, one: Waiting, check: _Check) -> bool:
        """True where the reference is what it waits for."""
        model = one.model
        if check.judging is not None:
            if check.judging.done():
                judging, check.judging = check.judging, None
                self._take_verdict(one, check, judging)
            return False
        engine = self._store.engines.get(model.base)
        if engine is None or engine.state is not EngineState.READY:
            return False
        if model.desired is not Desired.LOADED:  # evicted, or unloaded by somebody, while its job waits
            self._store.models.want(model.name, Desired.LOADED)
            return False
        held = self._store.engines.residents(engine)
        mine = held.get(model.sha256)
        if mine is not None and mine.state is Residency.FAILED:
            self._count_refusal(one, check, engine, held)
            return False
        if not self._references.is_measured(model.id):
            return True
        if mine is not None and mine.state is Residency.LOADED:
            check.run = engine.run
            check.judging = self._threads.submit(self._judge, engine, model)
        return False

    # the reference

    def _start_reference(self, unmeasured: Sequence[Waiting]) -> None:
        """Of the oldest and of others on its base; one that failed before goes alone, and not on a GPU again."""
        first = unmeasured[0]
        has_failed = self._checks[first.model.id].failures > 0
        others = [
            one
            for one in unmeasured
            if one.model.base == first.model.base and not self._checks[one.model.id].failures
        ]
        batch = [first] if has_failed else others[:_AT_ONCE]
        engine = self._store.engines.get(first.model.base)
        assert engine is not None and engine.info is not None, "it was ready"
        info = engine.info
        assert info.path is not None and info.max_model_len is not None, "an engine that is ready has both"
        base = BaseSpec(
            path=str(info.path),
            trust_remote_code=info.trust_remote_code,
            device=self._devices.lend_for_check(gpu=not has_failed),
            context=info.max_model_len,
        )
        try:
            self._references.start([self._spec(one, base) for one in batch])
        except OSError as error:  # a full disk, say
            log.warning("checking %s: %s; trying again", first.model.name, error)
            self._checks[first.model.id].not_before = time.monotonic() + _WAIT
            return
        log.info("on %s: checking %s", base.device, ", ".join(one.model.name for one in batch))

    def _spec(self, one: Waiting, base: BaseSpec) -> ParitySpec:
        rows_from, rows_file = self._rows(one)
        return ParitySpec(
            base=base,
            adapter_id=one.model.id,
            adapter=str(self._workspace.artifacts.local(one.model.sha256)),
            chat_template=one.model.chat_template,
            rows_from=rows_from,
            rows_file=str(rows_file) if rows_file else None,
            rows=self._settings.parity.parity_rows,
        )

    def _rows(self, one: Waiting) -> tuple[RowsFrom, Path | None]:
        """Held-out rows of its job, else those it was trained on, as far as they are still there."""
        if one.job is not None:
            roles: tuple[RowsFrom, ...] = ("validation_file", "training_file")
            for role in roles:
                id = one.job.file(role)
                if id is not None and self._workspace.file(id).is_file():
                    return role, self._workspace.file(id)
        return "probes", None

    def _watch_reference(self, waiting: dict[str, Waiting]) -> None:
        ended = self._references.watch()
        if ended is None or ended.why is None:
            return
        if ended.no_room and self._store.jobs.on_devices():  # there will be room
            for id in ended.unmeasured:
                self._checks[id].not_before = time.monotonic() + _WAIT
            return
        first = waiting.get(ended.unmeasured[0])
        if first is not None:
            self._failed(first, self._checks[first.model.id], ended.why)

    # the verdict

    def _judge(self, engine: Engine, model: TunedModel) -> dict[str, Any]:
        folder = self._references.folder(model.id)
        try:
            reference = folder.read_reference()
        except ValueError:
            folder.reference_file.unlink()
            raise
        leases = Leases(self._workspace.leases)
        if reference is None or not leases.take(engine.name, model.sha256):
            raise NotLoaded
        try:  # from here on it is not unloaded
            held = self._store.engines.residents(engine).get(model.sha256)
            if held is None or held.state is not Residency.LOADED:
                raise NotLoaded
            return judge(engine, model, folder.read_spec(), reference)
        finally:
            leases.give_back(engine.name, model.sha256)

    def _take_verdict(self, one: Waiting, check: _Check, judging: Future[dict[str, Any]]) -> None:
        try:
            parity = judging.result()
        except NotLoaded:
            return
        except EngineBusy as error:  # no fault of the adapter, unless it is what ends the engine
            check.lost_runs.add(check.run)
            check.not_before = time.monotonic() + _AGAIN_AFTER
            if len(check.lost_runs) >= MAX_FAILURES:
                self._not_checked(one, f"{error}, in {len(check.lost_runs)} of its runs.", quarantine=True)
            return
        except Exception as error:  # an engine that answers otherwise than we know
            log.exception("checking %s", one.model.name)
            self._failed(one, check, f"{type(error).__name__}: {error}.")
            return
        verdict = Verdict(parity["verdict"])
        told = parity["reason"]
        failure = None
        if verdict is Verdict.FAIL:
            text = f"{one.model.name} is quarantined: {told} {_what_next(one.model)}"
            failure = JobError(code="parity_failed", message=text)
        self._record(one, parity, failure, told, "info" if verdict is Verdict.PASS else "warn")

    def _count_refusal(
        self, one: Waiting, check: _Check, engine: Engine, held: dict[str, ResidencyRow]
    ) -> None:
        """Loading is tried again by itself, but not for ever. For room it waits."""
        loaded = sum(row.state is Residency.LOADED for row in held.values())
        if engine.info is None or loaded >= engine.info.max_adapters:
            return
        mine = held[one.model.sha256]
        check.refused_at.add(mine.at)
        if len(check.refused_at) >= MAX_FAILURES:
            self._not_checked(one, f"the engine could not load it: {mine.error}.", quarantine=True)

    def _failed(self, one: Waiting, check: _Check, why: str) -> None:
        log.warning("checking %s: %s", one.model.name, why)
        check.failures += 1
        check.not_before = time.monotonic() + _AGAIN_AFTER
        if check.failures >= MAX_FAILURES:
            self._not_checked(one, why, quarantine=True)

    def _not_checked(self, one: Waiting, why: str, *, quarantine: bool) -> None:
        """What is served already stays so: nothing was found against it."""
        told = f"Not checked: {why}"
        parity = {"verdict": Verdict.NOT_CHECKED, "reason": told, "checked_at": time.time()}
        failure = None
        if one.model.state is ModelState.READY:
            parity |= {key: value for key, value in (one.model.parity or {}).items() if key == "forced"}
        elif quarantine:
            message = f"{one.model.name} is quarantined, since it could not be checked: {why} {_what_next(one.model)}"
            failure = JobError(code="parity_not_checked", message=message)
        self._record(one, parity, failure, told, "warn")

    def _record(
        self, one: Waiting, parity: dict[str, Any], failure: JobError | None, told: str, level: str
    ) -> None:
        event = {
            "level": level,
            "type": "message",
            "message": told,
            "data": {"model": one.model.name, "parity": parity},
        }
        self._store.checks.record(one.model.id, parity, failure=failure, event=event)
        log.log(logging.WARNING if failure else logging.INFO, "%s: %s", one.model.name, told)
        self._forget(one.model.id)

    def _forget(self, id: str) -> None:
        self._checks.pop(id, None)
        self._references.forget(id)


def _what_next(model: TunedModel) -> str:
    return (
        f"(GET /v1/adapters/{model.id} has the numbers; POST /v1/adapters/{model.id}/load?force=true serves it all the "
        "same.)"
    )
