"""What is said of a model: its facts as a document."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tunewright.api.models.report.curves import curves
from tunewright.api.models.report.document import (
    Document,
    Pairs,
    Part,
    Picture,
    Section,
    Table,
    Text,
    number,
    ranged,
    when,
)
from tunewright.api.models.report.evaluations import evaluations_of, gates_of, results_of
from tunewright.api.models.report.facts import Facts
from tunewright.kinds.export.models import ExportReport
from tunewright.kinds.fine_tuning.models import FineTuningRequest, FineTuningResult
from tunewright.plan.defaults import Resolved
from tunewright.plan.forgetting import Forgetting
from tunewright.rows.report.picture import picture
from tunewright.store.file_lineages import FileLineage, SynthesisLineage
from tunewright.store.records import TunedModel
from tunewright.store.states import ModelKind, ModelMethod

_KINDS = {ModelKind.ADAPTER: "A LoRA adapter", ModelKind.FULL: "A full model"}
_OPTIONS = (
    "type", "learning_rate", "n_epochs", "batch_size", "max_length", "truncation", "lr_scheduler_type", "warmup_ratio",
    "weight_decay", "max_grad_norm", "rank", "alpha", "dropout", "target_modules", "use_rslora", "use_dora",
    "quantization", "dtype",
)  # fmt: skip
_PARITY = (
    ("rows", "rows"), ("tokens", "tokens"), ("slope", "slope of the changes"), ("correlation", "correlation"),
    ("effect", "effect, nats"), ("residual", "residual, nats"), ("top1_agreement", "same likeliest token"),
)  # fmt: skip


def document_of(facts: Facts) -> Document:
    model = facts.model
    sections = [
        _identity(facts),
        _training(facts),
        _data(facts),
        _export(facts),
        _parity(facts),
        evaluations_of(facts),
        gates_of(facts),
        _lineage(facts),
    ]
    is_adapter = model is not None and model.kind is ModelKind.ADAPTER
    return Document(
        title=facts.name,
        summary=_summary(facts),
        sections=tuple(section for section in sections if section is not None),
        base=facts.base_hub_id or (model.base if model is not None else None),
        library="peft" if is_adapter else "transformers",
        tags=(model.method.value,) if model is not None else (),
        results=tuple(results_of(facts.evaluations)),
    )


def footer_of(version: str) -> str:
    return f"Made by Tunewright {version} on {when(time.time())}."


def _summary(facts: Facts) -> str:
    model = facts.model
    if model is None:
        return "A base that is served here as it is."
    how = "quantized by AWQ" if model.method is ModelMethod.AWQ else f"made by {model.method.value}"
    return f"{_KINDS[model.kind]} on {model.base}, {how}."


def _identity(facts: Facts) -> Section:
    model, engine = facts.model, facts.engine
    if model is None:
        fingerprint = engine.info.fingerprint if engine is not None and engine.info is not None else None
        return Section(
            "Model", (Pairs((("name", facts.name), ("fingerprint", fingerprint), _aliases(facts))),)
        )
    return Section(
        "Model",
        (
            Pairs((
                ("name", model.name),
                ("id", model.id),
                ("kind", model.kind.value),
                ("base", model.base),
                ("base on the hub", facts.base_hub_id),
                ("fingerprint of the base", model.base_fingerprint),
                ("method", model.method.value),
                ("rank", str(model.rank) if model.rank else None),
                ("alpha", number(model.alpha) if model.alpha else None),
                ("modules", ", ".join(model.target_modules) if model.target_modules else None),
                ("chat template", "its own" if model.chat_template else None),
                ("sha256 of the weights", model.sha256),
                ("bytes", f"{model.bytes:,}"),
                ("state", model.shown_state),
                ("source", model.source.value),
                ("created", when(model.created_at)),
                _aliases(facts),
            )),
        ),
    )  # fmt: skip


def _aliases(facts: Facts) -> tuple[str, str | None]:
    return "aliases", ", ".join(facts.aliases) or None


def _training(facts: Facts) -> Section | None:
    job = facts.job
    if job is None or not isinstance(job.request, FineTuningRequest):
        return None
    resolved, result = job.resolved, job.result
    parts: list[Part] = []
    if isinstance(resolved, Resolved):
        options = resolved.model_dump()
        parts.append(
            Pairs((
                ("job", job.id),
                ("method", resolved.method),
                *((name, _shown(options.get(name))) for name in _OPTIONS),
                ("seed", str(job.seed)),
            ))
        )  # fmt: skip
    if isinstance(result, FineTuningResult):
        measured = result.measured
        parts.append(
            Pairs((
                ("trained tokens", f"{result.trained_tokens:,}" if result.trained_tokens else None),
                ("device", measured.device if measured else None),
                ("seconds of its steps", number(measured.seconds) if measured else None),
                ("most memory, bytes", f"{measured.peak_bytes:,}" if measured else None),
            ))
        )  # fmt: skip
        parts += _forgetting(result.forgetting) if result.forgetting is not None else []
    drawn = curves("Loss, nats per token", facts.losses)
    if drawn is not None:
        parts.append(Picture(drawn, "The losses over the steps of the training"))
    if facts.model is not None and facts.model.lineage is not None and facts.model.lineage.metrics:
        found = facts.model.lineage.metrics
        parts.append(Pairs(tuple((name, number(value)) for name, value in found.items())))
    if facts.checkpoints:
        parts.append(_checkpoints({one.step: one.metrics for one in facts.checkpoints}))
    return Section("Training", tuple(parts))


def _forgetting(found: Forgetting) -> list[Part]:
    """How far it is from what it was before training, on text that has nothing to do with its data."""
    return [
        Text(f"{found.describe()}."),
        Pairs((
            ("divergence on general text, nats per token", ranged(found.kl, found.low, found.high)),
            ("of which is too much", f"more than {found.bound:g}" + (": it is" if found.is_beyond else "")),
        )),
    ]  # fmt: skip


def _shown(value: Any) -> str | None:
    if value is None or value is False:
        return None
    return (
        ", ".join(value)
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _checkpoints(metrics: Mapping[int, Mapping[str, float]]) -> Table:
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    return Table(
        ("checkpoint", *names),
        tuple(
            (str(step), *(number(found.get(name)) for name in names))
            for step, found in sorted(metrics.items())
        ),
    )


def _data(facts: Facts) -> Section | None:
    lineage = facts.model.lineage if facts.model is not None else None
    if lineage is None or (lineage.training_file is None and not lineage.mix):
        return None
    parts: list[Part] = [
        Pairs((
            ("training file", _file(facts, lineage.training_file)),
            ("sha256", lineage.training_sha256),
            ("validation file", lineage.validation_file),
            ("sha256 of that", lineage.validation_sha256),
        ))
    ]  # fmt: skip
    if lineage.mix:
        rows = tuple(
            (str(one["file"]), str(one.get("sha256") or "-"), number(one.get("weight")))
            for one in lineage.mix
        )
        parts.append(Table(("file", "sha256", "weight"), rows))
    record = facts.training_file
    if record is not None and record.lineage is not None:
        parts.append(Text(_made_of(record.lineage)))
    report = facts.data
    if report is None:
        parts.append(Text(f"There is no report on its rows: {facts.no_data or 'it was not made'}."))
        return Section("Data", tuple(parts))
    tokens = report.tokens
    parts.append(
        Pairs((
            ("format", report.format),
            ("rows", f"{report.rows:,}" if report.is_complete else f"more than {report.rows:,}"),
            ("copies of earlier rows", f"{report.duplicates.copies:,}"),
            ("examples", f"{tokens.examples:,}" if tokens else None),
            ("tokens of an epoch", f"{tokens.tokens:,}" if tokens else None),
            ("of them with a loss", f"{tokens.trained:,}" if tokens else None),
            ("examples that are cut", f"{tokens.cut:,} at {tokens.max_length:,} tokens" if tokens else None),
        ))
    )  # fmt: skip
    name = record.filename if record is not None else "training data"
    parts.append(Picture(picture(report, name), "How long the rows of the training file are"))
    found = [*report.problems, *report.flags]
    if found:
        parts.append(
            Table(
                ("found", "rows", "what"),
                tuple((one.code, str(one.count) if one.count else "-", one.message) for one in found),
            )
        )
    return Section("Data", tuple(parts))


def _file(facts: Facts, id: str | None) -> str | None:
    if id is None:
        return None
    return f"{facts.training_file.filename} ({id})" if facts.training_file is not None else id


def _export(facts: Facts) -> Section | None:
    report = facts.job.report if facts.job is not None else None
    if not isinstance(report, ExportReport):
        return None
    quality, gate = report.quality, report.gate
    passed = "passed" if gate.passed else "not passed; published by force" if gate.forced else "not passed"
    return Section(
        "Quality of the export",
        (
            Text(
                f"On {quality.tokens:,} tokens of {quality.rows:,} rows ({quality.rows_from}), against "
                f"{quality.source}."
            ),
            Table(
                ("model", "loss", "KL divergence", "same likeliest token"),
                tuple(
                    (row.name, number(row.loss), number(row.kl), number(row.top1_agreement))
                    for row in quality.models
                ),
            ),
            Pairs(
                (("gate", passed), ("largest KL divergence", number(gate.max_kl) if gate.max_kl else None))
            ),
        ),
    )


def _parity(facts: Facts) -> Section | None:
    if facts.model is None or not facts.model.parity or "verdict" not in facts.model.parity:
        return None
    parity = facts.model.parity
    forced = parity.get("forced")
    numbers = ((name, number(float(parity[key]))) for key, name in _PARITY if parity.get(key) is not None)
    return Section(
        "Parity of training and serving",
        (
            Pairs((
                ("verdict", str(parity["verdict"]).replace("_", " ")),
                ("reason", str(parity.get("reason") or "") or None),
                ("checked", when(parity["checked_at"]) if parity.get("checked_at") else None),
                *numbers,
                ("served by force", f"by {forced.get('who') or 'an unknown user'}" if forced else None),
            )),
        ),
    )  # fmt: skip


def _lineage(facts: Facts) -> Section | None:
    model = facts.model
    lineage = model.lineage if model is not None else None
    if model is None or lineage is None:
        return None
    parts: list[Part] = [
        Pairs((
            ("continued from weights", lineage.parent_sha256),
            ("registered from", lineage.origin),
            ("revision", lineage.revision),
            ("created by", lineage.created_by),
            ("seed", str(lineage.seed) if lineage.seed is not None else None),
        ))
    ]  # fmt: skip
    if lineage.models:
        rows = tuple(
            (str(one["model"]), str(one.get("sha256") or "-"), number(one.get("weight")))
            for one in lineage.models
        )
        parts.append(Table(("made of", "sha256", "weight"), rows))
    if facts.ancestors:
        parts.append(
            Table(
                ("ancestor", "method", "training file", "sha256", "created"),
                tuple(map(_ancestor, facts.ancestors)),
            )
        )
    shown = [part for part in parts if not isinstance(part, Pairs) or any(value for _, value in part.items)]
    return Section("Lineage", tuple(shown)) if shown else None


def _ancestor(model: TunedModel) -> tuple[str, ...]:
    file = model.lineage.training_file if model.lineage is not None else None
    return model.name, model.method.value, file or "-", model.sha256, when(model.created_at)


def _made_of(lineage: FileLineage | SynthesisLineage) -> str:
    """Where a training file comes from that was made here."""
    source = f"{lineage.filename} (sha256 {lineage.sha256})"
    if isinstance(lineage, SynthesisLineage):
        return (
            f"{lineage.rows_after:,} rows ({lineage.task['type']}) made from {source} in {lineage.synthesis}, by the "
            f"teacher {lineage.teacher} ({lineage.teacher_content})."
        )
    steps = ", ".join(str(step.get("type")) for step in lineage.steps)
    return (
        f"Cleaned by {lineage.cleaning} from {source}: {lineage.rows_before:,} rows became {lineage.rows_after:,}, by "
        f"{steps}."
    )
