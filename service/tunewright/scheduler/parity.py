"""The parity check: an adapter is served only after it was found to have the same effect in the engine as in peft.

For each pending check (`store.checks`), a reference process (`evaluate.parity`) scores a few rows with transformers and
peft. The engine, which has loaded the adapter already although no request reaches it, scores the same tokens, and
`evaluate.compare` gives the verdict. One transaction stores the verdict and ends the job that waits for it. Adapters of
equal weights are measured once (`verdicts`).
Nothing here has to survive: a new scheduler adopts the reference process, finds its result, or starts again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tunewright.config import Settings
from tunewright.engine.http import EngineBusy
from tunewright.engine.leases import Leases
from tunewright.evaluate.folder import BaseSpec, ParitySpec, RowsFrom
from tunewright.kinds.rows import rows_of_job, sources_of
from tunewright.registry.workspace import Workspace
from tunewright.rows.sources import Source
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.inputs import InputFiles
from tunewright.scheduler.judging import judge
from tunewright.scheduler.references import References
from tunewright.scheduler.temporary import is_temporary
from tunewright.scheduler.verdicts import Outcome, content_of_check
from tunewright.store.checks import PendingCheck
from tunewright.store.records import Engine, EngineInfo, ResidencyRow, TunedModel
from tunewright.store.states import Desired, EngineState, ModelMethod, Residency
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

    content: str | None = None
    """What is measured, and how (`verdicts.content_of_check`); None while its engine was never ready."""
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
        self,
        settings: Settings,
        store: Store,
        workspace: Workspace,
        lifeline: int,
        devices: Devices,
        forks: ForkServer,
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._devices = devices
        self._references = References(settings.jobs, workspace, lifeline, devices, forks)
        self._forks = forks
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parity")
        self._inputs = InputFiles(workspace)
        self._checks: dict[str, _Check] = {id: _Check() for id in self._references.ids()}
        self._alike: dict[str, list[PendingCheck]] = {}
        """The pending checks that measure the same, oldest first, by content."""

    def tick(self) -> None:
        waiting = {one.model.id: one for one in self._store.latest(self._store.checks.waiting)}
        for id in self._checks.keys() - waiting.keys():
            self._forget(id)  # deleted or cancelled meanwhile
        unmeasured = []
        for one in self._to_measure(list(waiting.values())):
            check = self._checks[one.model.id]
            try:
                if not self._settings.parity.is_on and not one.is_requested:
                    off = Outcome.not_checked("the check is switched off (--parity)", quarantine=False)
                    self._record(one, off)
                elif time.monotonic() >= check.not_before and self._advance(one, check):
                    unmeasured.append(one)
            except Exception as error:
                if not is_temporary(error):
                    raise
                log.warning("checking %s: %s; trying again", one.model.name, error)
                check.not_before = time.monotonic() + _WAIT
        if unmeasured and not self._references.is_running and self._forks.prepare():
            self._start_reference(unmeasured)
        self._watch_reference(waiting)

    @property
    def is_at_rest(self) -> bool:
        """Whether no check is pending."""
        return not self._checks and not self._references.is_running

    def stop(self) -> None:
        """End the checks that run; they begin again at the next start."""
        self._references.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _to_measure(self, waiting: Sequence[PendingCheck]) -> list[PendingCheck]:
        """Those of the pending checks that are to be measured: not those with a verdict already, nor those that measure
        the same as an older one."""
        new = [one for one in waiting if self._checks.setdefault(one.model.id, _Check()).content is None]
        engines = {base: self._store.engines.get(base) for base in {one.model.base for one in new}}
        for one in new:
            self._checks[one.model.id].content = self._content(one, engines[one.model.base])
        if not self._settings.parity.is_on:
            return list(waiting)
        self._alike = {}
        known = self._store.checks.verdicts({one.model.sha256 for one in waiting})
        chosen = []
        for one in waiting:
            content = self._checks[one.model.id].content
            if content is None:
                continue
            if content in known and not one.is_requested:
                self._record_one(one, Outcome.of(known[content].parity or {}), known[content])
                continue
            alike = self._alike.setdefault(content, [])
            alike.append(one)
            if len(alike) == 1:
                chosen.append(one)
        return chosen

    def _content(self, one: PendingCheck, engine: Engine | None) -> str | None:
        if engine is None or engine.info is None or engine.info.path is None:
            return None
        return self._spec(one, engine.info, "").content

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
            if self._workspace.remote is None:
                return True
            # the worker fetches it from the bucket to load it
            has_weights = self._workspace.artifacts.local(model.sha256).is_dir()
            return has_weights and (one.job is None or self._inputs.of(one.job))
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
        device = self._devices.lend_for_check(gpu=not has_failed)
        try:
            specs = [self._spec(one, engine.info, device) for one in batch]
        except Exception:  # else no job gets it any more
            self._devices.give_back(device)
            raise
        try:
            self._references.start(specs)
        except OSError as error:  # a full disk, say
            log.warning("checking %s: %s; trying again", first.model.name, error)
            self._checks[first.model.id].not_before = time.monotonic() + _WAIT
            return
        log.info("on %s: checking %s", device, ", ".join(one.model.name for one in batch))

    def _spec(self, one: PendingCheck, engine: EngineInfo, device: str) -> ParitySpec:
        assert engine.path is not None, "an engine that was ready has one"
        has_template = one.model.chat_template is not None or engine.has_chat_template
        rows_from, files = self._rows(one, has_template)
        spec = ParitySpec(
            base=BaseSpec(
                path=str(engine.path),
                trust_remote_code=engine.trust_remote_code,
                device=device,
                context=engine.max_model_len or 0,
            ),
            adapter_id=one.model.id,
            adapter=str(self._workspace.artifacts.local(one.model.sha256)),
            chat_template=one.model.chat_template,
            rows_from=rows_from,
            files=files,
            rows=self._settings.parity.parity_rows,
            four_bit=one.model.method is ModelMethod.QLORA,
        )
        records = {source.id: self._store.files.get(source.id) for source in files}
        hashes = [record.sha256 if record else id for id, record in records.items()]
        content = content_of_check(one.model, engine, spec, hashes)
        return spec.model_copy(update={"content": content})

    def _rows(self, one: PendingCheck, has_template: bool) -> tuple[RowsFrom, tuple[Source, ...]]:
        """The held-out rows of the adapter's job, else those that it was trained on, of the files that still exist;
        none for the built-in probes."""
        if one.job is not None:
            rows, listed = rows_of_job(one.job, one.model.lineage), self._store.files.get
            held_out = rows.data.reading(has_template, "held_out")
            if files := sources_of(rows.held_out, self._workspace, held_out, listed):
                return "validation_file", files
            training = rows.data.reading(has_template, "training")
            if files := sources_of(rows.training, self._workspace, training, listed):
                return "training_file", files
        return "probes", ()

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
            reference, spec = folder.read_reference(), folder.read_spec()
        except ValueError:  # of a damaged disk, or an earlier version
            folder.reference_file.unlink(missing_ok=True)
            raise
        leases = Leases(self._workspace.leases)
        if reference is None or not leases.take(engine.name, model.sha256):
            raise NotLoaded
        try:  # the lease keeps the adapter loaded
            held = self._store.engines.residents(engine).get(model.sha256)
            if held is None or held.state is not Residency.LOADED:
                raise NotLoaded
            return {**judge(engine, model, spec, reference), "content": spec.content}
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
                self._give_up(one, f"{error}, in {len(check.lost_runs)} of its runs.")
            return
        except Exception as error:  # an engine whose answers have an unknown form, say
            if is_temporary(error):
                raise
            log.exception("checking %s", one.model.name)
            self._failed(one, check, f"{type(error).__name__}: {error}.")
            return
        self._record(one, Outcome.of(parity))

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
            self._give_up(one, f"the engine could not load it: {refusal.error}.")

    def _failed(self, one: PendingCheck, check: _Check, why: str) -> None:
        log.warning("checking %s: %s", one.model.name, why)
        check.failures += 1
        check.not_before = time.monotonic() + _AGAIN_AFTER
        if check.failures >= MAX_FAILURES:
            self._give_up(one, why)

    def _give_up(self, one: PendingCheck, why: str) -> None:
        self._record(one, Outcome.not_checked(why, quarantine=True))

    def _record(self, one: PendingCheck, outcome: Outcome) -> None:
        """Record the outcome for the adapter and for those that measure the same."""
        content = self._checks[one.model.id].content
        alike = self._alike.pop(content, []) if content is not None else []
        for each in [one, *(other for other in alike if other.model.id != one.model.id)]:
            self._record_one(each, outcome, one.model)

    def _record_one(self, one: PendingCheck, outcome: Outcome, measured: TunedModel) -> None:
        outcome = outcome.for_model(one.model, measured)
        parity, failure = outcome.parity, outcome.failure(one.model)
        event = {
            "level": outcome.level,
            "type": "message",
            "message": outcome.message,
            "data": {"model": one.model.name, "parity": parity},
        }
        self._store.checks.record(one.model.id, parity, failure=failure, event=event)
        log.log(logging.WARNING if failure else logging.INFO, "%s: %s", one.model.name, outcome.message)
        self._forget(one.model.id)

    def _forget(self, id: str) -> None:
        self._checks.pop(id, None)
        self._references.forget(id)
