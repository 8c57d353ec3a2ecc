"""Exports: `client.exports`, and the Export that knows its client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from .._core import endpoints
from .._core.exports import CombineInput, source_fields
from .._core.weighted import Weighted
from ..types import ExportRecord
from ..types.exports import ExportFormat
from .work import BoundRecord, Work


class Export(BoundRecord, ExportRecord):
    """An export as it was when it was read; its methods ask its client. A record does not change:
    `export = export.refresh()` reads a new one."""


class Exports(Work[Export]):
    """`client.exports`: models made of models. An export is a job without training: what takes a `job_id`
    takes an export's id."""

    _path = endpoints.EXPORTS
    _record = Export

    def create(
        self,
        model: str | None = None,
        *,
        models: Weighted | None = None,
        format: ExportFormat,
        combine: CombineInput | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        calibration_file: str | Path | None = None,
        calibration_rows: int | None = None,
        group_size: int | Literal["largest"] | None = None,
        validation_file: str | Path | None = None,
        validation_rows: int | None = None,
        max_kl: float | None = None,
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Export:
        """Merge an adapter into its base, quantize a model to 4 bits, or make one adapter of several.

        - model: what is exported; or models, adapters of one base: {name: weight}, or a list of names or of
          {"model": name, "weight": weight}
        - format: merged, awq (an adapter is merged first) or adapter (of several)
        - combine: how several become one: linear, soup, ties or dare, or an object with method, density, rank
        - suffix: part of the new model's name
        - calibration_file: rows that the quantizer looks at, by default those that the model was trained on;
          validation_file: held-out rows that the quality is measured on. Each is a file's id, or a
          pathlib.Path to a file, which is uploaded first
        - group_size: 128, 64, 32 or "largest": weights that share a scale
        - max_kl: nats for each token that the product may diverge; force: publish it all the same
        - idempotency_key: the same key gives the same export, however often this is called

        Raises ValueError unless one of model and models is given, BadRequestError for what cannot be exported
        so, FileNotFoundError for a missing file.
        """
        return self._create(
            {"calibration_file": calibration_file, "validation_file": validation_file},
            idempotency_key,
            **source_fields(model, models, combine),
            format=format,
            suffix=suffix,
            seed=seed,
            calibration_rows=calibration_rows,
            group_size=group_size,
            validation_rows=validation_rows,
            max_kl=max_kl,
            force=force or None,
            metadata=metadata,
        )
