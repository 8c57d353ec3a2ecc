"""The parity gate: an adapter is served only after it was seen to do in the engine what it does in peft.

For each adapter that waits (`store.checks`), one after another: a reference process (`evaluate.parity`) scores a few
rows with transformers and peft; the engine, which holds the adapter already though no request reaches it, scores the
same tokens; `evaluate.compare` judges; one transaction writes the verdict down and ends the job that waits for it.
What is held here can be lost: a killed scheduler finds the reference process, or its result, or begins again.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.config import Settings, child_environment
from tunewright.engine.client import EngineError
from tunewright.errors import StorageFull
from tunewright.evaluate.compare import Verdict
from tunewright.evaluate.folder import NO_ROOM, ParityFolder, ParitySpec, RowsFrom
from tunewright.registry.data_folder import DataFolder
from tunewright.scheduler.judging import NotLoaded, judge
from tunewright.scheduler.reports import exit_words, last_line
from tunewright.store.checks import Waiting
from tunewright.store.records import Engine, ResidencyRow, TunedModel
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessGroup

log = logging.getLogger("tunewright.scheduler")

MAX_FAILURES = 3
"""After so many an adapter cannot be checked, and is quarantined."""
_AGAIN_AFTER, _WAIT = 5.0, 30.0
"""Seconds: after a failure, and for room."""
_LONGEST_ROW = 512
"""Tokens."""


@dataclass
class _Check:
    """What is known of one check in this process."""

    group: ProcessGroup | None = None
    started_at: float = 0.0
    judging: Future[dict[str, Any]] | None = None
    failures: int = 0
    not_before: float = 0.0
    refused_at: set[float] = field(default_factory=set)
    """When the engine refused to load the adapter."""


class ParityGate:
    """A part of the scheduler's loop; `tick()` never blocks for long."""

    def __init__(
        self, settings: Settings, store: Store, data: DataFolder, lifeline: int, devices: list[str]
    ) -> None:
        self._settings = settings
        self._store = store
        self._data = data
        self._lifeline = lifeline
        self._devices = devices
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parity")
        self._checks: dict[str, _Check] = {}
        for path in data.tmp.glob("parity-*"):  # of an earlier scheduler
            group = ProcessGroup.adopt(ParityFolder(path).process_file)
            self._checks[path.name.removeprefix("parity-")] = _Check(group, time.monotonic())

    def tick(self) -> None:
        waiting = self._store.checks.waiting()
        for id in self._checks.keys() - {one.model.id for one in waiting}:
            self._forget(id)  # deleted, cancelled or released meanwhile
        for one in waiting:
            if self._settings.parity == "off":
                self._not_checked(one, "the check is switched off (--parity)", quarantine=False)
                continue
            try:
                self._go_on(one)
            except (OSError, StorageFull) as error:  # a full disk, say
                log.warning("checking %s: %s; trying again", one.model.name, error)
                self._checks.setdefault(one.model.id, _Check()).not_before = time.monotonic() + _WAIT

    def devices_in_use(self) -> Collection[str]:
        """GPUs that reference processes were given."""
        running = [id for id, check in self._checks.items() if check.group is not None]
        specs = [self._folder(id).read_spec() for id in running]
        return {spec.device for spec in specs if spec.device != "cpu"}

    def stop(self) -> None:
        """What runs begins again at the next start."""
        for check in self._checks.values():
            if check.group is not None:
                check.group.end()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _go_on(self, one: Waiting) -> None:
        model = one.model
        check = self._checks.setdefault(model.id, _Check())
        if check.judging is not None:
            if check.judging.done():
                judging, check.judging = check.judging, None
                self._take_verdict(one, check, judging)
            return
        engine = self._store.engines.get(model.base)
        if time.monotonic() < check.not_before or engine is None or engine.state is not EngineState.READY:
            return
        if model.desired != "loaded":  # evicted, or unloaded by somebody, while its job waits
            self._store.models.want(model.name, "loaded")
            return
        held = self._store.engines.residents(engine).get(model.sha256)
        if held is not None and held.state is Residency.FAILED and self._is_given_up(one, check, held):
            return
        folder = self._folder(model.id)
        if check.group is not None:
            self._watch_reference(one, check, check.group, folder)
        elif not folder.reference_file.exists():
            if not any(
                other.group is not None for other in self._checks.values()
            ):  # memory for one base at a time
                self._start_reference(one, check, folder, engine)
        elif held is not None and held.state is Residency.LOADED:
            check.judging = self._threads.submit(self._judge, engine, model, folder)

    # the reference

    def _start_reference(self, one: Waiting, check: _Check, folder: ParityFolder, engine: Engine) -> None:
        model = one.model
        assert engine.info is not None
        device = self._free_gpu() if check.failures == 0 else "cpu"
        rows_from, rows_file = self._rows(one)
        folder.write_spec(
            ParitySpec(
                adapter_id=model.id,
                base_path=engine.info["path"],
                trust_remote_code=model.base in self._settings.trust_remote_code,
                adapter=str(self._data.artifact(model.sha256)),
                chat_template=one.job.chat_template if one.job else model.chat_template,
                rows_from=rows_from,
                rows_file=str(rows_file) if rows_file else None,
                rows=self._settings.parity_rows,
                max_tokens=min(_LONGEST_ROW, engine.info["max_model_len"] - 1),
                device=device,
            )
        )
        visible = device.removeprefix("cuda:") if device != "cpu" else ""
        with folder.log_file.open("ab") as output:
            check.group = ProcessGroup.start(
                [sys.executable, "-m", "tunewright.evaluate.parity", str(folder.path)],
                record_path=folder.process_file,
                environment=child_environment({"CUDA_VISIBLE_DEVICES": visible}),
                lifeline=self._lifeline,
                output=output,
                title=_title(model),
            )
        check.started_at = time.monotonic()
        log.info("%s is checked on %s (pid %s)", model.name, device, check.group.pid)

    def _rows(self, one: Waiting) -> tuple[RowsFrom, Path | None]:
        """Held-out rows of its job, else those it was trained on, as far as they are still there."""
        if one.job is not None:
            files: dict[RowsFrom, str | None] = {
                "validation_file": one.job.validation_file,
                "training_file": one.job.training_file,
            }
            for rows_from, id in files.items():
                if id is not None and self._data.file(id).is_file():
                    return rows_from, self._data.file(id)
        return "probes", None

    def _free_gpu(self) -> str:
        """One that no job has, else the CPU."""
        taken = {job.device for job in self._store.jobs.on_devices()}
        return next((device for device in self._devices if device != "cpu" and device not in taken), "cpu")

    def _watch_reference(
        self, one: Waiting, check: _Check, group: ProcessGroup, folder: ParityFolder
    ) -> None:
        limit = self._settings.step_timeout
        hung = group.is_alive() and time.monotonic() - check.started_at > limit
        if group.is_alive() and not hung:
            group.keep_watched(self._lifeline, _title(one.model))
            return
        how = f"no result within {limit:.0f} s" if hung else exit_words(group.exit_code)
        code = group.exit_code
        group.end()
        check.group = None
        if folder.reference_file.exists() or (code is None and not hung):  # what nobody saw was not its fault
            return
        if code == NO_ROOM and self._store.jobs.on_devices():  # there will be room
            check.not_before = time.monotonic() + _WAIT
            return
        self._failed(one, check, f"the reference process ended with {how}: {last_line(folder.log_file)}.")

    # the verdict

    def _judge(self, engine: Engine, model: TunedModel, folder: ParityFolder) -> dict[str, Any]:
        reference = folder.read_reference()
        if reference is None:
            folder.reference_file.unlink(missing_ok=True)
            raise NotLoaded
        return judge(self._data, engine, model, folder.read_spec(), reference)

    def _take_verdict(self, one: Waiting, check: _Check, judging: Future[dict[str, Any]]) -> None:
        try:
            parity = judging.result()
        except NotLoaded:
            return
        except EngineError as error:
            self._failed(one, check, f"{error}.")
            return
        except Exception as error:  # an engine that answers otherwise than we know
            log.exception("checking %s", one.model.name)
            self._failed(one, check, f"{type(error).__name__}: {error}.")
            return
        verdict = Verdict(parity["verdict"])
        told = parity["reason"]
        failure = None
        if verdict is Verdict.FAIL:
            failure = ("parity_failed", f"{one.model.name} is quarantined: {told} {_release(one.model)}")
        self._record(one, parity, failure, told, "info" if verdict is Verdict.PASS else "warn")

    def _is_given_up(self, one: Waiting, check: _Check, held: ResidencyRow) -> bool:
        """Loading is tried again by itself, but not for ever."""
        check.refused_at.add(held.at)
        if len(check.refused_at) < MAX_FAILURES:
            return False
        self._not_checked(one, f"the engine could not load it: {held.error}.", quarantine=True)
        return True

    def _failed(self, one: Waiting, check: _Check, why: str) -> None:
        log.warning("checking %s: %s", one.model.name, why)
        check.failures += 1
        check.not_before = time.monotonic() + _AGAIN_AFTER
        if check.failures >= MAX_FAILURES:
            self._not_checked(one, why, quarantine=True)

    def _not_checked(self, one: Waiting, why: str, *, quarantine: bool) -> None:
        told = f"Not checked: {why}"
        parity = {"verdict": Verdict.NOT_CHECKED, "reason": told, "checked_at": time.time()}
        failure = None
        if quarantine:
            message = (
                f"{one.model.name} is quarantined, since it could not be checked: {why} {_release(one.model)}"
            )
            failure = ("parity_not_checked", message)
        self._record(one, parity, failure, told, "warn")

    def _record(
        self, one: Waiting, parity: dict[str, Any], failure: tuple[str, str] | None, told: str, level: str
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
        check = self._checks.pop(id, None)
        if check is not None and check.group is not None:
            check.group.end()
        shutil.rmtree(self._folder(id).path, ignore_errors=True)

    def _folder(self, id: str) -> ParityFolder:
        return ParityFolder(self._data.tmp / f"parity-{id}")


def _release(model: TunedModel) -> str:
    return f"(GET /v1/adapters/{model.id} has the numbers; POST /v1/adapters/{model.id}/release lists it all the same.)"


def _title(model: TunedModel) -> str:
    return f"tunewright: lifeline of the reference of {model.id}"
