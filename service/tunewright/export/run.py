"""One export, from spec to result: combine, merge, quantize, measure, apply the quality gate, write the model card."""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import transformers

from tunewright.atomic import publish_folder
from tunewright.evaluate.quality import Candidate, Quality, measure
from tunewright.export.awq_quantizer import AwqQuantizer
from tunewright.export.card import write_card
from tunewright.export.combine import combine
from tunewright.export.folder import ExportSpec
from tunewright.export.merge import merge
from tunewright.export.progress import Progress, peak_memory
from tunewright.export.quantizer import QuantizeOptions, Quantizer
from tunewright.export.rows import ExportText
from tunewright.jobs.failure import explain
from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder, Outcome
from tunewright.jobs.process import leave, rank
from tunewright.logs import limit_records
from tunewright.registry.content import folder_size

log = logging.getLogger("tunewright.export")

_ADVICE = "Free some of it: an export needs about one layer of the model and its activations for a few rows."
NOISE_BOUND = 5.0
"""The largest KL divergence of a merged model from its adapter, as a multiple of the noise.

A correct merge rounds each weight once and has a thirtieth of the noise. A merge into 4-bit weights has 75 to 260 times
the noise, one with an alpha that is off by a tenth 70 times (docs/decisions/0014).
"""
_NOISE = "adapter in bfloat16"
QUANTIZER: Quantizer = AwqQuantizer()
"""The quantizer of format awq."""


def run_export(folder: JobFolder, spec: ExportSpec) -> int:
    """Export, and write `result.json`; returns the exit code."""
    faulthandler.enable()  # SIGABRT, sent to a process that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    transformers.logging.disable_progress_bar()
    # Every intermediate file is complete or missing, so there is nothing to save first.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED_RESUMABLE))
    try:
        outcome = _Export(folder, spec).run()
    except Exception as error:
        failure = explain(error, folder.path, process="export", advice=_ADVICE)
        if failure is None:
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        outcome = Outcome(status="failed", error_code=failure.code, error_message=str(failure))
    return leave(folder, outcome)


class _Export:
    def __init__(self, folder: JobFolder, spec: ExportSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._events = EventLog(folder, rank())
        self._progress = Progress(folder, self._events)
        self._device = spec.device
        is_base = spec.source == spec.base_name
        self._source = "adapter" if spec.adapters else "base" if is_base else "model"
        """The kind of model that the product is compared with."""
        self._base = Path(spec.base_path)
        folder.work.mkdir(exist_ok=True)

    def run(self) -> Outcome:
        spec = self._spec
        text = ExportText(spec)
        rows = text.measured()
        self._expect()
        adapter = self._adapter()
        candidates = self._candidates(adapter)
        product = adapter if spec.format == "adapter" else None
        model = self._base
        if adapter is not None and spec.format != "adapter":
            model = product = self._merged(adapter)
            candidates.append(Candidate("merged", model))
        if spec.format == "awq":
            product = self._quantized(model, text.calibration())
            candidates.append(Candidate("awq", product, "awq"))
        assert product is not None, "a format is one of the three"
        with self._progress.phase("measure", f"Measuring {len(rows)} rows") as details:
            quality = measure(
                candidates,
                rows,
                reference=self._source,
                device=self._device,
                dtype=torch.float32,  # so that only changes of the weights are measured, not rounding in between
                on_progress=lambda done, total: self._progress.at("measure", done, total),
                trust_remote_code=spec.trust_remote_code,
            )
            details["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        return self._conclude(product, quality, len(rows))

    def _expect(self) -> None:
        spec = self._spec
        phases = ["combine"] * (len(spec.adapters) > 1)
        phases += ["merge"] * (bool(spec.adapters) and spec.format != "adapter")
        phases += ["quantize"] * (spec.format == "awq")
        for phase in [*phases, "measure"]:
            self._progress.expect(phase, 1)  # until it reports its number of steps

    def _adapter(self) -> Path | None:
        """The adapter to merge: the only one, or several combined."""
        spec = self._spec
        if len(spec.adapters) < 2:
            return Path(spec.adapters[0].path) if spec.adapters else None
        assert spec.combine is not None
        out = self._folder.work / "adapter"
        shutil.rmtree(out, ignore_errors=True)
        with self._progress.phase("combine", f"Combining {len(spec.adapters)} adapters") as details:
            combined = combine(
                [(Path(source.path), source.weight) for source in spec.adapters],
                self._base,
                out,
                method=spec.combine.method,
                density=spec.combine.density,
                rank=spec.combine.rank,
                max_rank=spec.combine.max_rank,
                seed=spec.seed,
                on_module=lambda done, total: self._progress.at("combine", done, total),
            )
            details |= {
                "method": spec.combine.method,
                "rank": combined.rank,
                "relative_error": combined.error,
            }
        return out

    def _merged(self, adapter: Path) -> Path:
        out = self._folder.work / "merged"
        with self._progress.phase("merge", f"Merging into {self._spec.base_name}") as details:
            merged = merge(
                self._base,
                adapter,
                out,
                chat_template=self._spec.chat_template,
                on_progress=lambda at: self._progress.at("merge", at.tensors, at.all_tensors),
            )
            details |= {"shards": merged.shards, "reused_shards": merged.kept, "tensors": merged.tensors}
            details |= {
                "modules": merged.modules,
                "untied": merged.untied,
                "peak_memory_bytes": peak_memory(),
            }
        return out

    def _quantized(self, model: Path, rows: list[list[int]]) -> Path:
        spec = self._spec
        assert spec.calibration is not None
        out = self._folder.work / "awq"
        # A run that was killed later may have left it. The quantized layers are kept in another folder.
        shutil.rmtree(out, ignore_errors=True)
        with self._progress.phase(
            "quantize", f"Quantizing, with {sum(map(len, rows))} tokens of calibration"
        ) as details:
            quantized = QUANTIZER.quantize(
                model,
                out,
                rows=rows,
                options=QuantizeOptions(spec.calibration.group_size, spec.trust_remote_code),
                device=self._device,
                on_layer=lambda done, total: self._progress.at("quantize", done, total),
                work=self._folder.work / "layers",
            )
            details |= {"layers": quantized.layers, "reused_layers": quantized.reused}
            details |= {"tokens": quantized.tokens, "group_size": spec.calibration.group_size}
            details |= {"versions": quantized.versions, "peak_memory_bytes": peak_memory()}
            if self._device != "cpu":
                details["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
        return out

    def _candidates(self, adapter: Path | None) -> list[Candidate]:
        """The models that are measured for comparison with the product."""
        found = [Candidate("base" if self._spec.adapters else self._source, self._base)]
        if len(self._spec.adapters) > 1:
            found += [
                Candidate(source.model, self._base, adapter=Path(source.path))
                for source in self._spec.adapters
            ]
        if adapter is not None:
            found.append(Candidate("adapter", self._base, adapter=adapter))
        if adapter is not None and self._spec.format != "adapter":
            found.append(Candidate(_NOISE, self._base, adapter=adapter, dtype=torch.bfloat16))
        return found

    def _conclude(self, product: Path, quality: Quality, rows: int) -> Outcome:
        """Apply the quality gate, and move the product to where it is published from, unless the gate refuses it."""
        spec = self._spec
        measured = quality.candidates[-1]
        bounds, noise = self._bounds(quality)
        over = {name: bound for name, bound in bounds.items() if not _within(quality.of(name).kl, bound)}
        report: dict[str, Any] = {
            "quality": {
                "source": self._source,
                "models": [
                    {"name": row.name, "loss": row.loss, "kl": row.kl, "top1_agreement": row.agreement}
                    for row in quality.candidates
                ],
                "rows": rows,
                "tokens": measured.tokens,
                "rows_from": spec.rows.rows_from,
            },
            "gate": {
                "max_kl": bounds.get(measured.name),
                "noise": noise,
                "kl": measured.kl,
                "passed": not over,
                "forced": spec.force and bool(over),
            },
            "source_bytes": folder_size(self._base) + sum(folder_size(Path(a.path)) for a in spec.adapters),
            "details": self._progress.details,
        }
        exceeded = "; ".join(
            f"{name}: KL divergence from the {self._source} {_shown(quality.of(name).kl)} nats for each token, above "
            f"{bound:.3g}"
            for name, bound in over.items()
        )
        if over and not spec.force:
            report["bytes"] = folder_size(product)
            return Outcome(
                status="failed",
                error_code="quality_gate_failed",
                error_message=f"it is not published: {exceeded} (loss {_shown(measured.loss)}, top-1 agreement "
                f"{_shown(measured.agreement)}, over {rows} rows of {spec.rows.rows_from}). Give a larger `max_kl`, or "
                "publish it anyway with `force`",
                report=report,
            )
        if over:
            self._events.message(f"Exceeds the gate, published since `force` is set: {exceeded}", "warn")
        else:
            self._events.message(
                f"Measured: KL divergence from the {self._source} {_shown(measured.kl)} nats for each token, top-1 "
                f"agreement {_shown(measured.agreement)}"
            )
        if spec.adapters and spec.format == "awq":
            self._compare_with_effect(quality)
        final = self._folder.adapter if spec.format == "adapter" else self._folder.model
        if spec.format != "adapter":
            write_card(product, spec, report)
        report["bytes"] = folder_size(product)
        shutil.rmtree(final, ignore_errors=True)
        publish_folder(product, final)
        return Outcome(status="succeeded", report=report)

    def _compare_with_effect(self, quality: Quality) -> None:
        """Warn where quantization changes more than the adapter does, which no bound excludes for a weak adapter."""
        effect, lost = quality.of("base").kl, quality.of("awq").kl
        if effect is not None and lost is not None and lost > effect:
            self._events.message(
                f"Quantizing changes more (KL {lost:.3g}) than the adapter does (KL of the base {effect:.3g}): on "
                "these rows it hardly differs from the base",
                "warn",
            )

    def _bounds(self, quality: Quality) -> tuple[dict[str, float], float | None]:
        """The largest KL divergence of each product, intermediate ones included, and the noise.

        A merged model is bounded by the noise also where it is quantized next, since quantization would hide a wrong
        merge.
        """
        spec = self._spec
        bounds: dict[str, float] = {}
        noise = None
        if spec.adapters and spec.format != "adapter":
            noise = quality.of(_NOISE).kl
            bounds["merged"] = spec.max_merged_kl or NOISE_BOUND * (noise or 0.0)
        if spec.format == "awq" and spec.max_awq_kl is not None:
            bounds["awq"] = spec.max_awq_kl
        return bounds, noise


def _within(kl: float | None, bound: float) -> bool:
    return kl is not None and kl <= bound


def _shown(value: float | None) -> str:
    return "that is not finite" if value is None else f"{value:.3g}"
