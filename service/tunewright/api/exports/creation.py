"""Creates exports from requests. A request that cannot succeed is refused here, before the export is queued."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunewright.api.exports.schemas import CreateExport
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import check_training_file, create_once
from tunewright.errors import (
    EngineUnavailable,
    ExportUnsupported,
    InvalidRequest,
    NotFound,
    UnsupportedFeature,
    quoted,
)
from tunewright.evaluate.folder import RowsFrom
from tunewright.kinds import EXPORT
from tunewright.kinds.data import DataOptions
from tunewright.kinds.export.models import (
    CALIBRATION_FILE,
    SOURCE,
    VALIDATION_FILE,
    CombineRequest,
    ExportRequest,
    SourceModel,
)
from tunewright.kinds.rows import rows_of_job
from tunewright.registry.awq_check import check_awq
from tunewright.registry.content import adapter_config
from tunewright.registry.mergeable import check_mergeable, merge_only
from tunewright.registry.safetensors_file import BadTensors, read_shapes
from tunewright.store.records import Engine, Job, JobInput, NewJob, TunedModel
from tunewright.store.states import UNCHECKED, ModelKind, ModelMethod, ModelState


@dataclass(frozen=True)
class _Source:
    """The models to export: adapters of one base, or a full model."""

    base: str
    path: Path
    """Folder of the base, or of the full model."""
    adapters: list[tuple[TunedModel, float]]
    """The adapters with their weights."""
    whole: TunedModel | None = None
    """The full model, where neither adapters nor a base are exported."""

    @property
    def models(self) -> list[TunedModel]:
        return [*(adapter for adapter, _ in self.adapters), *([self.whole] if self.whole else [])]

    @property
    def first(self) -> TunedModel | None:
        return self.models[0] if self.models else None


def create_export(context: ServiceContext, body: CreateExport, idempotency_key: str | None) -> Job:
    """Create an export, or return the one that the same key created before.

    Raises InvalidRequest, NotFound, EngineUnavailable and TooManyRequests.
    """
    return create_once(context, body, idempotency_key, lambda: _checked(context, body))


def _checked(context: ServiceContext, body: CreateExport) -> NewJob:
    source = _source(context, body)
    notes = _check_adapters(context, body, source)
    group_size = _check_awq(body, source)
    rows = _rows(context, body, source)
    if body.format == "awq" and not rows.calibration:
        raise InvalidRequest(
            f"Quantizing looks at text like what the model will see, and {body.model or 'the first of `models`'} has "
            "no training file here: upload some rows and give them as `calibration_file`.",
            param="calibration_file",
            code="missing_parameter",
        )
    if rows.rows_from == "training_file":
        notes.append(
            "The quality is measured on rows that were trained on: give a `validation_file` for held-out ones."
        )
    bounds = {
        "merged": context.settings.exports.max_merged_kl,
        "awq": context.settings.exports.max_awq_kl,
        "adapter": None,
    }
    first = source.first
    files = {
        CALIBRATION_FILE: rows.calibration if body.format == "awq" else {},
        VALIDATION_FILE: rows.validation,
    }
    inputs = [JobInput(role, file_id=id) for role, ids in files.items() for id in ids]
    inputs += [JobInput(SOURCE, sha256=model.sha256) for model in source.models]
    return NewJob(
        kind=EXPORT.name,
        base=source.base,
        request=ExportRequest(
            model=first.name if first else source.base,
            suffix=body.suffix or _suffix(first, body.format),
            chat_template=first.chat_template if first else None,
            format=body.format,
            models=[SourceModel(model=adapter.name, weight=weight) for adapter, weight in source.adapters],
            combine=_combine(body),
            calibration_rows=body.calibration_rows if body.format == "awq" else None,
            group_size=group_size,
            rows=body.validation_rows,
            rows_from=rows.rows_from,
            calibration_data=rows.calibration_data,
            validation_data=rows.validation_data,
            calibration_shares=files[CALIBRATION_FILE],
            validation_shares=files[VALIDATION_FILE],
            max_kl=body.max_kl if body.max_kl is not None else bounds[body.format],
            force=body.force,
            notes=notes,
        ),
        seed=body.seed,
        inputs=tuple(inputs),
        metadata=body.metadata,
    )


def _combine(body: CreateExport) -> CombineRequest | None:
    if body.combine is not None:
        return CombineRequest(**body.combine.model_dump())
    return CombineRequest() if body.models is not None else None


def _suffix(first: TunedModel | None, format: str) -> str:
    """The default suffix: the one of the source model, and the format."""
    named = first.name.split(":")[2] if first and first.name.count(":") >= 3 else ""
    return f"{named}-{format}"[-64:].lstrip("-._")


# the models to export


def _source(context: ServiceContext, body: CreateExport) -> _Source:
    asked = [(source.model, source.weight) for source in body.models or ()]
    param = "models" if asked else "model"
    names = asked or [(body.model or "", 1.0)]
    found = [(_model(context, name, param), weight) for name, weight in names]
    adapters = [
        (model, weight) for model, weight in found if model is not None and model.kind is ModelKind.ADAPTER
    ]
    if asked and len(adapters) < len(asked):
        other = next(
            name for (name, _), (model, _) in zip(asked, found, strict=True) if not _is_adapter(model)
        )
        raise InvalidRequest(
            f"{other} is no adapter: only adapters are combined.", param=param, code="not_an_adapter"
        )
    if adapters:
        bases = {adapter.base for adapter, _ in adapters}
        if len(bases) > 1:
            raise InvalidRequest(
                f"The adapters are of different bases ({', '.join(sorted(bases))}): combine those of one.",
                param=param,
                code="different_bases",
            )
        engine = _engine(context, bases.pop())
        for adapter, _ in adapters:
            _refuse_unusable(adapter, engine, param)
        return _Source(engine.name, _base_path(engine), adapters)
    whole = found[0][0]
    if whole is not None and whole.method is ModelMethod.REWARD:
        raise UnsupportedFeature(
            f"{whole.name} is a reward model, which is a whole model already, and is not quantized here.",
            param="model",
        )
    name = names[0][0]
    if body.format == "merged":
        what = "a base" if whole is None else f"a whole model ({whole.method})"
        raise InvalidRequest(
            f"{name} is {what}, and has nothing to merge: it can be deployed or quantized (format awq) as it is.",
            param="model",
            code="nothing_to_merge",
        )
    if whole is None:
        engine = _engine(context, name)
        return _Source(name, _base_path(engine), [])
    if whole.method is ModelMethod.AWQ:
        raise InvalidRequest(f"{name} is quantized already.", param="model", code="already_quantized")
    _refuse_unusable(whole, _engine(context, whole.base), "model")
    try:
        path = context.workspace.artifacts.fetch(whole.sha256)
    except FileNotFoundError as error:
        raise NotFound(
            f"No such model: {name!r}. It was deleted.", param="model", code="model_not_found"
        ) from error
    return _Source(whole.base, path, [], whole)


def _is_adapter(model: TunedModel | None) -> bool:
    return model is not None and model.kind is ModelKind.ADAPTER


def _model(context: ServiceContext, name: str, param: str) -> TunedModel | None:
    """The tuned model of this name; None for a base. Raises InvalidRequest and NotFound."""
    model = context.store.models.get(name)
    if model is not None and model.name == name:
        return model
    if context.store.engines.get(name) is not None:
        return None
    if context.store.aliases.get(name) is not None:
        raise InvalidRequest(
            f"{name} is an alias, which may change: name the model that it has now (GET /v1/aliases/{name}).",
            param=param,
        )
    raise NotFound(f"No such model: {quoted(name)}.", param=param, code="model_not_found")


def _refuse_unusable(adapter: TunedModel, engine: Engine, param: str) -> None:
    if adapter.state is ModelState.CHECKING:
        is_unchecked = adapter.shown_state == UNCHECKED
        why = "is not checked yet: load it, and" if is_unchecked else "is being checked:"
        raise InvalidRequest(
            f"{adapter.name} {why} wait until it is listed.", param=param, code="model_not_ready"
        )
    if engine.info is None or adapter.base_fingerprint != engine.info.fingerprint:
        raise InvalidRequest(
            f"{adapter.name} was trained on another model that was named {adapter.base} then.",
            param=param,
            code="base_changed",
        )


def _engine(context: ServiceContext, base: str) -> Engine:
    """The engine of a base whose files are present. Raises InvalidRequest and EngineUnavailable."""
    engine = context.store.engines.get(base)
    if engine is None:
        raise InvalidRequest(
            f"{base} is not among the bases served here, so nothing can be merged into it.",
            param="model",
            code="base_not_served",
        )
    if engine.info is None or engine.info.path is None:
        raise EngineUnavailable(f"The base {base} is not available yet (GET /ready says when).")
    return engine


def _base_path(engine: Engine) -> Path:
    assert engine.info is not None and engine.info.path is not None, "`_engine` refuses one without"
    return engine.info.path


# whether the format is possible


def _check_adapters(context: ServiceContext, body: CreateExport, source: _Source) -> list[str]:
    """Notes about the adapters for the user. Raises InvalidRequest where they cannot be merged or combined."""
    notes = []
    most = context.settings.serving.max_lora_rank
    if body.combine is not None and (body.combine.rank or 0) > most:
        raise InvalidRequest(
            f"The engine serves adapters up to rank {most}: ask for no more, or start the service with a larger "
            "--max-lora-rank.",
            param="combine.rank",
        )
    for adapter, _ in source.adapters:
        try:
            folder = context.workspace.artifacts.fetch(adapter.sha256)
            config = adapter_config(folder)
            check_mergeable(source.path, folder)
        except FileNotFoundError as error:
            raise NotFound(
                f"No such model: {adapter.name!r}. It was deleted.", param="model", code="model_not_found"
            ) from error
        if adapter.state is ModelState.QUARANTINED:
            notes.append(
                f"{adapter.name} is quarantined: in the engine it was not what it is in peft; it is merged as in peft."
            )
        why = merge_only(config)
        if why is not None and body.models is not None:
            raise ExportUnsupported(
                f"{adapter.name} cannot be combined with others: {why}. Only adapters that are no more than LoRA "
                "weights are combined.",
                param="models",
            )
        if why is not None:
            notes.append(f"{adapter.name} is served only when merged: {why}.")
    return notes


def _check_awq(body: CreateExport, source: _Source) -> int | None:
    """The group size. Raises InvalidRequest where AWQ cannot quantize this model."""
    if body.format != "awq":
        return None
    try:
        config = json.loads((source.path / "config.json").read_text())
        shapes = {name: shape for name, (_, shape) in read_shapes(source.path).items()}
        return check_awq(config, shapes, body.group_size)
    except (OSError, ValueError, BadTensors) as error:
        raise EngineUnavailable(f"The files of {source.base} cannot be read: {error}.") from error


# the rows


class _Rows(NamedTuple):
    """The files of an export with the share of each, how they are read, and the origin of the validation rows."""

    calibration: dict[str, float]
    calibration_data: DataOptions
    validation: dict[str, float]
    validation_data: DataOptions
    rows_from: RowsFrom


_BY_THEMSELVES = DataOptions()


def _rows(context: ServiceContext, body: CreateExport, source: _Source) -> _Rows:
    """Raises InvalidRequest."""
    for param in ("calibration_file", "validation_file"):
        id = getattr(body, param)
        if id is not None:
            check_training_file(context, param, id, method=None)
    trained_on, held_out, data = _files_of(context, source)
    calibration, calibration_data = trained_on, data
    if body.calibration_file:
        calibration, calibration_data = {body.calibration_file: 1.0}, _BY_THEMSELVES
    if body.validation_file:
        given = {body.validation_file: 1.0}
        return _Rows(calibration, calibration_data, given, _BY_THEMSELVES, "validation_file")
    if held_out:
        return _Rows(calibration, calibration_data, held_out, data, "validation_file")
    return _Rows(calibration, calibration_data, trained_on, data, "training_file" if trained_on else "probes")


def _files_of(
    context: ServiceContext, source: _Source
) -> tuple[dict[str, float], dict[str, float], DataOptions]:
    """What the first exported model whose job still has files was trained on, and what was held out: files with their
    shares, and how they are read."""
    for model in source.models:
        job = context.store.jobs.get(model.job_id) if model.job_id else None
        if job is None:
            continue
        rows = rows_of_job(job, model.lineage)
        training, held_out = (
            {id: share for id, share in shares.items() if context.store.files.get(id)}
            for shares in (rows.training, rows.held_out)
        )
        if training or held_out:
            return training, held_out, rows.data
    return {}, {}, _BY_THEMSELVES
