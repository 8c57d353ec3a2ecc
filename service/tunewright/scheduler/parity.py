"""The parity check: an adapter is served only after it was found to have the same effect in the engine as in peft.

For each pending check (`store.checks`), a reference process (`evaluate.parity`) scores a few rows with transformers and
peft. The engine, which has loaded the adapter already although no request reaches it, scores the same tokens, and
`evaluate.compare` gives the verdict. One transaction stores the verdict and ends the job that waits for it.
Nothing here has to survive: a new scheduler adopts the reference process, finds its result, or starts again.
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
from tunewright.store.checks import PendingCheck
from tunewright.store.records import Engine, ResidencyRow, TunedModel
from tunewright.store.states import Desired, EngineState, ModelState, Residency
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

MAX_FAILURES = 3
"""Failures after which an adapter counts as impossible to check, and is quarantined."""
_AGAIN_AFTER, _WAIT = 5.0, 30.0
"""Seconds until the next try: after a failure, and where memory or disk space is missing."""
_AT_ONCE = 16
"""Most adapters that one reference process measures."""


class NotLoaded(Exception):
    """The engine does not hold the adapter any more, or is about to unload it: try again."""


@dataclass
class _Check:
    """The state of one check in this process."""

    judging: Future[dict[str, Any]] | None = None
    run: int = 0
    """The run of the engine that scores the adapter."""
    failures: int = 0
    not_before: float = 0.0
    refused_at: set[float] = field(default_factory=set)
    """Times at which the engine refused to load the adapter."""
    lost_runs: set[int] = field(default_factory=set)
    """Runs in which the engine stopped answering while it scored the adapter."""


class ParityChecker:
    """Runs the pending checks, as a part of the scheduler's loop; `tick()` never blocks for long."""

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
                if not self._settings.parity.is_on and not one.is_requested:
                    self._not_checked(one, "the check is switched off (--parity)", quarantine=False)
                elif time.monotonic() >= check.not_before and self._advance(one, check):
                    unmeasured.append(one)
            except StorageFull as error:
                log.warning("checking %s: %s; trying again", one.model.name, error)
                check.not_before = time.monotonic() + _WAIT
        if unmeasured and not self._references.is_running:
            self._start_reference(unmeasured)
        self._watch_reference(waiting)

    def stop(self) -> None:
        """End the checks that run; they begin again at the next start."""
        self._references.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _advance(self, one: PendingCheck, check: _Check) -> bool:
        """Do the next step of a check, if one is possible. Returns whether it waits for the reference process."""
        model = one.model
        if check.judging is not None:
            if check.judging.done():
                judging, check.judging = check.judging, None
                self._take_verdict(one, check, judging)
            return False
        engine = self._store.engines.get(model.base)
        if engine is None or engine.state is not EngineState.READY:
            return False
        if model.desired is not Desired.LOADED:  # evicted, or unloaded by a user, while its job waits
            self._store.models.want(model.name, Desired.LOADED)
            return False
        held = self._store.engines.residents(engine)
        residency = held.get(model.sha256)
        if residency is not None and residency.state is Residency.FAILED:
            self._count_refusal(one, check, engine, held)
            return False
        if not self._references.is_measured(model.id):
            return True
        if residency is not None and residency.state is Residency.LOADED:
            check.run = engine.run
            check.judging = self._threads.submit(self._judge, engine, model)
        return False

    # the reference

    def _start_reference(self, unmeasured: Sequence[PendingCheck]) -> None:
        """Start the reference process for the oldest adapter and others on its base. One that failed before is measured
        alone, and on the CPU."""
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

    def _spec(self, one: PendingCheck, base: BaseSpec) -> ParitySpec:
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

    def _rows(self, one: PendingCheck) -> tuple[RowsFrom, Path | None]:
        """The validation file of the adapter's job, else its training file, where it still exists; else the built-in
        probes."""
        if one.job is not None:
            roles: tuple[RowsFrom, ...] = ("validation_file", "training_file")
            for role in roles:
                id = one.job.file(role)
                if id is not None and self._workspace.file(id).is_file():
                    return role, self._workspace.file(id)
        return "probes", None

    def _watch_reference(self, waiting: dict[str, PendingCheck]) -> None:
        ended = self._references.watch()
        if ended is None or ended.why is None:
            return
        if ended.no_room and self._store.jobs.on_devices():  # memory becomes free when a job ends
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
        try:  # the lease keeps the adapter loaded
            held = self._store.engines.residents(engine).get(model.sha256)
            if held is None or held.state is not Residency.LOADED:
                raise NotLoaded
            return judge(engine, model, folder.read_spec(), reference)
        finally:
            leases.give_back(engine.name, model.sha256)

    def _take_verdict(self, one: PendingCheck, check: _Check, judging: Future[dict[str, Any]]) -> None:
        try:
            parity = judging.result()
        except NotLoaded:
            return
        except EngineBusy as error:  # no fault of the adapter, unless the adapter makes the engine crash
            check.lost_runs.add(check.run)
            check.not_before = time.monotonic() + _AGAIN_AFTER
            if len(check.lost_runs) >= MAX_FAILURES:
                self._not_checked(one, f"{error}, in {len(check.lost_runs)} of its runs.", quarantine=True)
            return
        except Exception as error:  # an engine whose answers have an unknown form
            log.exception("checking %s", one.model.name)
            self._failed(one, check, f"{type(error).__name__}: {error}.")
            return
        verdict = Verdict(parity["verdict"])
        reason = parity["reason"]
        failure = None
        if verdict is Verdict.FAIL:
            text = f"{one.model.name} is quarantined: {reason} {_what_next(one.model)}"
            failure = JobError(code="parity_failed", message=text)
        self._record(one, parity, failure, reason, "info" if verdict is Verdict.PASS else "warn")

    def _count_refusal(
        self, one: PendingCheck, check: _Check, engine: Engine, held: dict[str, ResidencyRow]
    ) -> None:
        """Count a refusal of the engine to load the adapter, which it tries again automatically; quarantine the adapter
        after too many. A refusal because the engine is full does not count."""
        loaded = sum(row.state is Residency.LOADED for row in held.values())
        if engine.info is None or loaded >= engine.info.max_adapters:
            return
        refusal = held[one.model.sha256]
        check.refused_at.add(refusal.at)
        if len(check.refused_at) >= MAX_FAILURES:
            self._not_checked(one, f"the engine could not load it: {refusal.error}.", quarantine=True)

    def _failed(self, one: PendingCheck, check: _Check, why: str) -> None:
        log.warning("checking %s: %s", one.model.name, why)
        check.failures += 1
        check.not_before = time.monotonic() + _AGAIN_AFTER
        if check.failures >= MAX_FAILURES:
            self._not_checked(one, why, quarantine=True)

    def _not_checked(self, one: PendingCheck, why: str, *, quarantine: bool) -> None:
        """Record that the check was not possible. An adapter that is served already stays so: no fault was found."""
        reason = f"Not checked: {why}"
        parity = {"verdict": Verdict.NOT_CHECKED, "reason": reason, "checked_at": time.time()}
        failure = None
        if one.model.state is ModelState.READY:
            parity |= {key: value for key, value in (one.model.parity or {}).items() if key == "forced"}
        elif quarantine:
            message = f"{one.model.name} is quarantined, since it could not be checked: {why} {_what_next(one.model)}"
            failure = JobError(code="parity_not_checked", message=message)
        self._record(one, parity, failure, reason, "warn")

    def _record(
        self, one: PendingCheck, parity: dict[str, Any], failure: JobError | None, reason: str, level: str
    ) -> None:
        event = {
            "level": level,
            "type": "message",
            "message": reason,
            "data": {"model": one.model.name, "parity": parity},
        }
        self._store.checks.record(one.model.id, parity, failure=failure, event=event)
        log.log(logging.WARNING if failure else logging.INFO, "%s: %s", one.model.name, reason)
        self._forget(one.model.id)

    def _forget(self, id: str) -> None:
        self._checks.pop(id, None)
        self._references.forget(id)


def _what_next(model: TunedModel) -> str:
    return (
        f"(GET /v1/adapters/{model.id} has the numbers; POST /v1/adapters/{model.id}/load?force=true serves it all the "
        "same.)"
    )
