"""`tunewright exports`: look at exports and their reports. Creating one is in `create_export.py`."""

from __future__ import annotations

import click

from tunewright.cli.create_export import create
from tunewright.cli.job_commands import EXPORTS, action_command, events_command, logs_command, pairs, steps
from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import number, page_size, size, when
from tunewright.cli.watch import watch_command
from tunewright_client import Export, ExportGate, ExportQualityRow, ExportReport


@click.group(cls=Commands)
def exports() -> None:
    """Merge, quantize and combine models, and see the loss of quality."""


exports.add_command(create)
exports.add_command(watch_command(EXPORTS, "tunewright models download $MODEL"))


@exports.command(
    name="list", epilog=examples("tunewright exports list", "tunewright exports list --limit 3 --json")
)
@limit_option(20)
@on_service
def list_exports(remote: Remote, limit: int) -> None:
    """List the exports, newest first."""

    def row(export: Export) -> tuple[object, ...]:
        return (
            export.id, export.status, steps(export), export.format, export.model, export.exported_model,
            when(export.created_at),
        )  # fmt: skip

    remote.out.listing(
        remote.client.exports.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "STEP", "FORMAT", "MODEL", "RESULT", "CREATED"],
        row,
    )


@exports.command(epilog=examples(EXPORTS.example_of("show")))
@click.argument("export_id")
@on_service
def show(remote: Remote, export_id: str) -> None:
    """Show one export: its request, its result or error, and its report.

    The table has the models over the same held-out rows: the loss in nats per token, the KL divergence from the
    source in nats per token, and the share of positions at which both have the same most likely token.
    """
    export = remote.client.exports.retrieve(export_id)
    if remote.out.as_json:
        remote.out.json(export)
        return
    remote.out.fields(_request(export) + (_measured(export.report) if export.report else []))
    quality = export.report.quality if export.report else None
    if quality is not None:
        remote.out.table(["MODEL", "LOSS", "KL", "TOP-1"], map(_row, quality.models))


def _request(export: Export) -> list[tuple[str, object]]:
    several = len(export.models) > 1
    return [
        ("id", export.id),
        ("status", export.status),
        ("format", export.format),
        *(
            [("model", f"{m.model}={m.weight:g}") for m in export.models]
            if several
            else [("model", export.model)]
        ),
        ("base", export.base),
        ("combined by", pairs(export.combine.model_dump(exclude_none=True)) if export.combine else None),
        ("result", export.exported_model),
        ("error", export.error.message if export.error else None),
        *(("note", note) for note in export.notes),
        ("calibration file", export.calibration_file),
        ("calibration rows", export.calibration_rows),
        ("group size", export.group_size),
        ("validation file", export.validation_file),
        ("validation rows", export.validation_rows),
        ("max KL", f"{export.max_kl:g}" if export.max_kl is not None else None),
        ("force", "yes" if export.force else None),
        ("step", steps(export)),
        ("phase", export.progress.phase if export.progress and not export.is_final else None),
        ("seed", export.seed),
        ("metadata", pairs(export.metadata)),
        ("created", when(export.created_at)),
        ("finished", when(export.finished_at)),
    ]


def _measured(report: ExportReport) -> list[tuple[str, object]]:
    ratio, quality = report.size_ratio, report.quality
    return [
        ("size", size(report.bytes)),
        ("size of source", size(report.source_bytes)),
        ("ratio", f"{ratio:.1%}" if ratio is not None else None),
        (
            "measured on",
            f"{quality.tokens} tokens of {quality.rows} rows ({quality.rows_from})" if quality else None,
        ),
        ("compared with", quality.source if quality else None),
        ("gate", _verdict(report.gate) if report.gate else None),
    ]


def _verdict(gate: ExportGate) -> str:
    if gate.max_kl is None:
        return "none"
    verdict = "passed" if gate.passed else "not passed, published by force" if gate.forced else "not passed"
    return f"{verdict}: KL {_finite(gate.kl, 6)}, at most {gate.max_kl:g}"


def _row(row: ExportQualityRow) -> tuple[str, str, str, str]:
    top1 = row.top1_agreement
    return (
        row.name,
        _finite(row.loss, 4),
        _finite(row.kl, 6),
        _finite(None if top1 is None else top1 * 100, 2, "%"),
    )


def _finite(value: float | None, digits: int, unit: str = "") -> str:
    shown = number(value, digits)
    return "not finite" if shown is None else shown + unit


exports.add_command(logs_command(EXPORTS, "Print the log of the export's process."))
exports.add_command(events_command(EXPORTS, "phase"))
exports.add_command(
    action_command(EXPORTS, "pause", "Pause exports: running ones free their device and keep their progress.")
)
exports.add_command(action_command(EXPORTS, "resume", "Let paused exports continue."))
exports.add_command(action_command(EXPORTS, "cancel", "Stop exports for good; nothing of them is published."))
