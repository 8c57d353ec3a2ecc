"""Registers adapters from their files. An adapter is checked completely before it is listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from fastapi import UploadFile

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.api.deployments.creation import trainable_deployments
from tunewright.api.http.context import ServiceContext
from tunewright.api.organization.quotas import check_adapters, check_bytes
from tunewright.errors import EngineUnavailable, InvalidAdapter, InvalidRequest, TooLarge, quoted
from tunewright.ids import id_for_key, key_in_project, model_name, new_id
from tunewright.kinds.products import state_of_new_adapter
from tunewright.registry.adapter_archive import unpack
from tunewright.registry.adapter_check import CONFIG_FILE, MLX_WEIGHTS_FILE, WEIGHTS_FILE, pickled
from tunewright.registry.adapter_config import LARGEST_CONFIG
from tunewright.registry.adapter_intake import TakenAdapter, base_hint, check_and_write
from tunewright.registry.adapter_sources import AdapterFiles, fetch_from_hub, folder_on_server, open_folder
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.hub_cache import HubCache
from tunewright.registry.safetensors_file import BadTensors
from tunewright.store.records import Engine, EngineInfo, Lineage, TunedModel
from tunewright.store.states import Desired, EngineState, ModelKind, ModelMethod, ModelState, Source

T = TypeVar("T")

_HUB_SECONDS = 300.0


@dataclass(frozen=True)
class Registration:
    """The options of a registration, beside the files."""

    base: str | None
    suffix: str | None
    load: bool
    idempotency_key: str | None


def register_upload(
    context: ServiceContext, files: Sequence[UploadFile], asked: Registration, folder: str | None = None
) -> TunedModel:
    """Register an uploaded archive, or the two uploaded files of an adapter. `folder` is the one of the archive that
    has the adapter, where there are several.

    Raises InvalidRequest, TooLarge and EngineUnavailable.
    """
    origin = _printable(", ".join(sorted(file.filename or "" for file in files)))
    with (
        TemporaryDirectory(prefix="unpacked-", dir=context.workspace.tmp) as temporary,
        _uploaded(files, Path(temporary), _largest(context), folder) as found,
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
def _uploaded(
    files: Sequence[UploadFile], temporary: Path, largest: int, folder: str | None
) -> Iterator[AdapterFiles]:
    named = {(file.filename or "").replace("\\", "/").rpartition("/")[2]: file.file for file in files}
    weights = next((name for name in (WEIGHTS_FILE, MLX_WEIGHTS_FILE) if name in named), WEIGHTS_FILE)
    if len(files) == 2 and named.keys() == {CONFIG_FILE, weights}:
        if folder is not None:
            raise InvalidRequest("`folder` is for archives: two files were sent.", param="folder")
        config = named[CONFIG_FILE].read(LARGEST_CONFIG + 1)
        if len(config) > LARGEST_CONFIG:
            raise TooLarge(f"{CONFIG_FILE} has more than {LARGEST_CONFIG} bytes.", param="file")
        yield AdapterFiles(config, named[weights])
        return
    for name in named:
        if name.startswith("adapter_model") and name.endswith((".bin", ".pt", ".pth", ".ckpt")):
            raise pickled(f"{name} is pickled")
    if len(files) != 1 or named.keys() & {CONFIG_FILE, weights}:
        raise InvalidRequest(
            f"Send one archive (.tar, .tar.gz or .zip) of the adapter's folder, or its two files, {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, as two parts named `file`; got {_printable(', '.join(sorted(named)))}.",
            param="file",
        )
    _checked(unpack, [files[0].file], temporary, largest, folder)
    with open_folder(temporary, largest) as found:
        yield found


def _checked(function: Callable[..., T], files: Sequence[BinaryIO], *args: Any) -> T:
    """`function(*files, *args)` in a process with limits. Raises InvalidAdapter and TooLarge where it exceeds them."""
    try:
        return call_apart(function, files, *args)
    except CutOff as error:
        raise InvalidAdapter(
            f"The adapter's files took more than {error.seconds} s to check, and were given up: they are made to take "
            "long, or broken. Save the adapter again with peft's `save_pretrained`."
        ) from error
    except OutOfMemory as error:
        raise TooLarge(
            f"The adapter's files take more than {error.mebibytes} MiB of memory to check."
        ) from error


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:512]


def _register(
    context: ServiceContext, files: AdapterFiles, asked: Registration, source: Source, lineage: Lineage
) -> TunedModel:
    engine = _engine(context, files, asked.base)
    largest = _info(engine).max_lora_rank or context.settings.serving.max_lora_rank
    base = _modules(engine)
    with TemporaryDirectory(prefix="adapter-", dir=context.workspace.tmp) as temporary, ExitStack() as kept:
        folder = Path(temporary)
        taken = _checked(
            check_and_write, [files.weights], files.config, base, _base_folder(engine), largest, folder
        )
        sha256 = context.workspace.artifacts.put(folder, kept)
        return _list(context, taken, asked, engine, sha256, source, lineage)


def _list(
    context: ServiceContext,
    taken: TakenAdapter,
    asked: Registration,
    engine: Engine,
    sha256: str,
    source: Source,
    lineage: Lineage,
) -> TunedModel:
    key = key_in_project(asked.idempotency_key, context.project)
    id = id_for_key("adapter", key) if key else new_id("adapter")
    name = model_name(engine.name, asked.suffix, id)
    size = context.workspace.artifacts.stat(sha256).bytes
    limits = context.store.holdings.limits()
    if context.store.models.get(id) is None:  # else the request is repeated
        check_bytes(context, size)
    listed = context.store.models.register(
        {
            "id": id,
            "name": name,
            "kind": ModelKind.ADAPTER,
            "sha256": sha256,
            "base": engine.name,
            "base_fingerprint": _info(engine).fingerprint,
            "method": ModelMethod.LORA,
            "rank": taken.config.rank,
            "alpha": taken.config.alpha,
            "target_modules": taken.targets,
            "bytes": size,
            "desired": Desired.LOADED if asked.load and not taken.is_merge_only else Desired.UNLOADED,
            "source": source,
            "lineage": asdict(lineage),
            "state": ModelState.MERGE_ONLY
            if taken.is_merge_only
            else state_of_new_adapter(context.settings.parity),
        },
        admit=partial(check_adapters, context, limits),
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
    sources = {base.name: base.source for base in (*context.bases(), *context.deployables())}
    own = [base.name for base in context.bases()]
    bases = [*own, *deployed]
    if asked is None:
        hint = _checked(base_hint, [], files.config)
        named = [name for name in bases if hint and hint in (name, sources.get(name))]
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
        raise InvalidRequest(f"No such base: {quoted(asked)}. Bases here: {', '.join(bases)}.", param="base")
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


def _base_folder(engine: Engine) -> Path:
    path = _info(engine).path
    assert path is not None, "`_engine` refuses one without"
    return path


def _modules(engine: Engine) -> BaseModules:
    try:
        return BaseModules(engine.name, _base_folder(engine))
    except (OSError, ValueError, BadTensors) as error:
        raise EngineUnavailable(
            f"The files of the base {engine.name} cannot be read, to check the adapter against them: {error}."
        ) from error
