"""Registers adapters from their files. An adapter is checked completely before it is listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import UploadFile

from tunewright.api.deployments.creation import trainable_deployments
from tunewright.api.http.context import ServiceContext
from tunewright.errors import EngineUnavailable, InvalidRequest, TooLarge
from tunewright.ids import id_for_key, model_name, new_id
from tunewright.registry.adapter_archive import unpack
from tunewright.registry.adapter_check import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckedAdapter,
    check_adapter,
    pickled,
)
from tunewright.registry.adapter_config import LARGEST_CONFIG, parse_adapter_config
from tunewright.registry.adapter_sources import AdapterFiles, fetch_from_hub, folder_on_server, open_folder
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.hub_cache import HubCache
from tunewright.registry.safetensors_file import BadTensors
from tunewright.store.records import Engine, EngineInfo, Lineage, TunedModel
from tunewright.store.states import Desired, EngineState, ModelKind, ModelMethod, ModelState, Source

_HUB_SECONDS = 300.0


@dataclass(frozen=True)
class Registration:
    """The options of a registration, beside the files."""

    base: str | None
    suffix: str | None
    load: bool
    idempotency_key: str | None


def register_upload(context: ServiceContext, files: Sequence[UploadFile], asked: Registration) -> TunedModel:
    """Register an uploaded archive, or the two uploaded files of an adapter.

    Raises InvalidRequest, TooLarge and EngineUnavailable.
    """
    origin = _printable(", ".join(sorted(file.filename or "" for file in files)))
    with (
        TemporaryDirectory(prefix="unpacked-", dir=context.workspace.tmp) as temporary,
        _uploaded(files, Path(temporary), _largest(context)) as found,
    ):
        return _register(context, found, asked, Source.UPLOAD, Lineage(origin=origin))


def register_folder(context: ServiceContext, path: str, asked: Registration) -> TunedModel:
    """Register a PEFT folder on the server. Raises the same as `register_upload`."""
    roots = [Path(root).expanduser() for root in context.settings.models.adapter_root]
    folder = folder_on_server(path, roots)
    with open_folder(folder, _largest(context), roots) as found:
        return _register(context, found, asked, Source.FOLDER, Lineage(origin=str(folder)))


def register_from_hub(
    context: ServiceContext, hub_id: str, revision: str | None, asked: Registration
) -> TunedModel:
    """Register a repository of the hub. Raises the same as `register_upload`."""
    size = context.settings.models.max_hub_cache_size
    cache = HubCache(context.workspace.hub, size, _largest(context))
    folder = fetch_from_hub(hub_id, revision, _HUB_SECONDS, cache)
    with open_folder(folder, _largest(context)) as found:
        lineage = Lineage(origin=hub_id, revision=folder.name)
        return _register(context, found, asked, Source.HUB, lineage)


def _largest(context: ServiceContext) -> int:
    return context.settings.models.max_adapter_size


@contextmanager
def _uploaded(files: Sequence[UploadFile], temporary: Path, largest: int) -> Iterator[AdapterFiles]:
    named = {(file.filename or "").replace("\\", "/").rpartition("/")[2]: file.file for file in files}
    if len(files) == 2 and named.keys() == {CONFIG_FILE, WEIGHTS_FILE}:
        config = named[CONFIG_FILE].read(LARGEST_CONFIG + 1)
        if len(config) > LARGEST_CONFIG:
            raise TooLarge(f"{CONFIG_FILE} has more than {LARGEST_CONFIG} bytes.", param="file")
        yield AdapterFiles(config, named[WEIGHTS_FILE])
        return
    for name in named:
        if name.startswith("adapter_model") and name.endswith((".bin", ".pt", ".pth", ".ckpt")):
            raise pickled(f"{name} is pickled")
    if len(files) != 1 or named.keys() & {CONFIG_FILE, WEIGHTS_FILE}:
        raise InvalidRequest(
            f"Send one archive (.tar, .tar.gz or .zip) of the adapter's folder, or its two files, {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, as two parts named `file`; got {_printable(', '.join(sorted(named)))}.",
            param="file",
        )
    unpack(files[0].file, temporary, largest)
    with open_folder(temporary, largest) as found:
        yield found


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:512]


def _register(
    context: ServiceContext, files: AdapterFiles, asked: Registration, source: Source, lineage: Lineage
) -> TunedModel:
    engine = _engine(context, files, asked.base)
    largest = _info(engine).max_lora_rank or context.settings.serving.max_lora_rank
    checked = check_adapter(files.config, files.weights, _modules(engine), max_rank=largest)
    with TemporaryDirectory(prefix="adapter-", dir=context.workspace.tmp) as temporary, ExitStack() as kept:
        checked.write(files.weights, Path(temporary))
        sha256 = context.workspace.artifacts.put(Path(temporary), kept)
        return _list(context, checked, asked, engine, sha256, source, lineage)


def _list(
    context: ServiceContext,
    checked: CheckedAdapter,
    asked: Registration,
    engine: Engine,
    sha256: str,
    source: Source,
    lineage: Lineage,
) -> TunedModel:
    key = asked.idempotency_key
    id = id_for_key("adapter", key) if key else new_id("adapter")
    name = model_name(engine.name, asked.suffix, id)
    listed = context.store.models.register(
        {
            "id": id,
            "name": name,
            "kind": ModelKind.ADAPTER,
            "sha256": sha256,
            "base": engine.name,
            "base_fingerprint": _info(engine).fingerprint,
            "method": ModelMethod.LORA,
            "rank": checked.config.rank,
            "alpha": checked.config.alpha,
            "target_modules": checked.targets,
            "bytes": context.workspace.artifacts.stat(sha256).bytes,
            "desired": Desired.LOADED if asked.load else Desired.UNLOADED,
            "source": source,
            "lineage": asdict(lineage),
            "state": ModelState.CHECKING if context.settings.parity.is_on else ModelState.READY,
        }
    )
    if (listed.name, listed.sha256) != (name, sha256):
        raise InvalidRequest(
            "This Idempotency-Key was used for another request; use a new key for a new adapter.",
            code="idempotency_key_reused",
        )
    return listed


def _engine(context: ServiceContext, files: AdapterFiles, asked: str | None) -> Engine:
    """The engine of the adapter's base. Raises InvalidRequest, and EngineUnavailable while the base is fetched."""
    deployed = trainable_deployments(context)
    sources = {
        base.name: base.source
        for base in (*context.settings.models.bases, *context.settings.models.deployables)
    }
    own = [base.name for base in context.settings.models.bases]
    bases = [*own, *deployed]
    if asked is None:
        hint = parse_adapter_config(files.config).base_hint
        named = [name for name in bases if hint in (name, sources.get(name))]
        asked = named[0] if len(named) == 1 else own[0] if len(own) == 1 else None
    if asked is None:
        raise InvalidRequest(
            f"Say which base the adapter is for: give `base`, one of {', '.join(bases)}.",
            param="base",
            code="missing_parameter",
        )
    if asked not in bases:
        model = context.store.models.get(asked)
        if model is not None and model.kind is ModelKind.FULL:
            raise InvalidRequest(
                f"{asked} is not deployed: deploy it first, with POST /v1/deployments.",
                param="base",
                code="model_not_served",
            )
        raise InvalidRequest(f"No such base: {asked!r}. Bases here: {', '.join(bases)}.", param="base")
    if asked in deployed and not deployed[asked].options.get("enable_lora", True):
        raise InvalidRequest(f"{asked} is deployed without adapters (enable_lora false).", param="base")
    engine = context.store.engines.get(asked)
    if engine is None or engine.state is EngineState.STOPPED or not engine.info or not engine.info.path:
        raise EngineUnavailable(
            f"The base {asked} is not available yet, so the adapter cannot be checked (GET /ready says when)."
        )
    return engine


def _info(engine: Engine) -> EngineInfo:
    assert engine.info is not None, "`_engine` refuses one without"
    return engine.info


def _modules(engine: Engine) -> BaseModules:
    path = _info(engine).path
    assert path is not None, "`_engine` refuses one without"
    try:
        return BaseModules(engine.name, path)
    except (OSError, ValueError, BadTensors) as error:
        raise EngineUnavailable(
            f"The files of the base {engine.name} cannot be read, to check the adapter against them: {error}."
        ) from error
