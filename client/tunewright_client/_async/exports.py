"""Exports: `client.exports`, and the record with the methods of one export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from .._core import endpoints
from .._core.inputs import CombineInput, WeightedModels, source_fields
from ..types import ExportRecord
from ..types.exports import ExportFormat
from .job_resource import AsyncBoundJob, AsyncJobResource


class AsyncExport(AsyncBoundJob, ExportRecord):
    """An export as it was when it was read, with methods that ask its client. The record does not change: `refresh`
    returns a new one."""


class AsyncExports(AsyncJobResource[AsyncExport]):
    """`client.exports`: models made of other models. An export is a job without training, so `job_id` arguments take
    the id of an export."""

    _path = endpoints.EXPORTS
    _record = AsyncExport

    async def create(
        self,
        model: str | None = None,
        *,
        models: WeightedModels | None = None,
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
    ) -> AsyncExport:
        """Merge an adapter into its base, quantize a model to 4 bits, or make one adapter of several.

        - model: the model to export
        - models: instead of `model`, adapters of one base: {name: weight}, or a list of names or of
          {"model": name, "weight": weight}
        - format: merged, awq (an adapter is merged first) or adapter (made of several)
        - combine: how several adapters are combined: linear, soup, ties or dare, or an object with method, density
          and rank
        - suffix: a part of the new model's name
        - calibration_file: the rows that the quantizer measures activations on, by default the training rows of the
          model
        - validation_file: the held-out rows that the quality is measured on. Both files are the id of a file, or a
          pathlib.Path of a local file, which is uploaded first
        - group_size: how many weights share a scale: 128, 64, 32 or "largest"
        - max_kl: the largest accepted KL divergence in nats for each token; force: publish the product in any case
        - idempotency_key: all calls with the same key give the same export

        Raises ValueError unless one of model and models is given, BadRequestError for a model that cannot be
        exported in this way, FileNotFoundError for a missing local file.
        """
        return await self._create(
            {"calibration_file": calibration_file, "validation_file": validation_file},
            idempotency_key,
            {
                **source_fields(model, models, combine),
                "format": format,
                "suffix": suffix,
                "seed": seed,
                "calibration_rows": calibration_rows,
                "group_size": group_size,
                "validation_rows": validation_rows,
                "max_kl": max_kl,
                "force": force or None,
                "metadata": metadata,
            },
        )
