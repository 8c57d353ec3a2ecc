"""The model card of an exported model: its sources, how it was made, and its measured quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.export.folder import ExportSpec, SourceAdapter
from tunewright.rows.sources import Source

_DESCRIPTIONS = {
    "merged": "with an adapter merged into its weights (bfloat16)",
    "awq": "quantized to 4 bits with AWQ",
}
_LINEAGE = (
    ("method", "trained by"),
    ("rank", "rank"),
    ("alpha", "alpha"),
    ("job", "job"),
    ("training_file", "training data"),
    ("training_sha256", "sha256 of the training data"),
    ("seed", "seed"),
    ("origin", "registered from"),
)
_FACTS = (
    ("export", "Export"),
    ("training_file", "Calibration data"),
    ("training_sha256", "sha256 of the calibration data"),
    ("validation_file", "Held-out data"),
    ("validation_sha256", "sha256 of the held-out data"),
    ("seed", "Seed"),
)


def write_card(folder: Path, spec: ExportSpec, report: dict[str, Any]) -> None:
    """Write `README.md` with the front matter that hubs read."""
    (folder / "README.md").write_text("\n".join(_lines(spec, report)) + "\n", encoding="utf-8")


def _lines(spec: ExportSpec, report: dict[str, Any]) -> list[str]:
    base = spec.base_hub_id or spec.base_name
    quality, gate = report["quality"], report["gate"]
    adapters = [line for adapter in spec.adapters for line in _adapter(adapter)]
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['tunewright', spec.format])}",
        "---",
        "",
        f"# {spec.model}",
        "",
        f"{base}, {_DESCRIPTIONS[spec.format]}. Made by Tunewright.",
        "",
        "## Made of",
        "",
        f"- base `{base}`",
        *adapters,
    ]
    if not adapters and spec.source != spec.base_name:
        lines.append(f"- model `{spec.source}`")
    if spec.combine is not None:
        lines.append(f"- combined by {spec.combine.method}")
    if spec.calibration is not None:
        lines.append(
            f"- 4 bits, groups of {spec.calibration.group_size}, calibrated on {spec.calibration.rows} rows at most"
        )
        lines += _shares("calibration data", spec.calibration.files)
    lines += _shares("held-out data", spec.rows.files)
    lines += [f"- {name}: {spec.facts[key]}" for key, name in _FACTS if spec.facts.get(key) is not None]
    lines += [
        "",
        "## Quality",
        "",
        f"Over {quality['tokens']} tokens of {quality['rows']} rows ({quality['rows_from']}). KL divergence is from, "
        f"and agreement with, the {quality['source']}; losses and divergences are in nats for each token.",
        "",
        "| model | loss | KL divergence | top-1 agreement |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {_number(row['loss'])} | {_number(row['kl'])} | {_number(row['top1_agreement'])} |"
            for row in quality["models"]
        ),
        "",
    ]
    if gate["forced"]:
        lines.append(
            f"**It exceeds the gate** (KL divergence at most {gate['max_kl']:.3g}) and was published by force."
        )
    elif gate["max_kl"] is not None:
        lines.append(f"It passed the gate: KL divergence at most {gate['max_kl']:.3g}.")
    versions = [
        f"{library} {version}"
        for details in report["details"].values()
        for library, version in details.get("versions", {}).items()
    ]
    return [*lines, "", f"Versions: {', '.join(dict.fromkeys(versions))}."]


def _adapter(adapter: SourceAdapter) -> list[str]:
    lineage = [f"{name} {adapter.lineage[key]}" for key, name in _LINEAGE if key in adapter.lineage]
    for one in adapter.lineage.get("mix") or []:
        known = f" (sha256 {one['sha256'][:16]})" if one["sha256"] else ""
        lineage.append(f"training data {one['file']}{known}, weight {one['weight']:g}")
    first = f"- adapter `{adapter.model}` (sha256 {adapter.sha256[:16]}), weight {adapter.weight:g}"
    return [first, *(f"  - {line}" for line in lineage)]


def _shares(what: str, files: Sequence[Source]) -> list[str]:
    """Of several files, what each has of the rows."""
    if len(files) < 2:
        return []
    total = sum(file.share for file in files)
    return [f"- {what} `{file.id}`, {file.share / total:.1%} of the rows" for file in files]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}" if 0 < value < 0.001 else f"{value:.5f}"
