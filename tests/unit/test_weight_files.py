"""One rule says which files of a folder are a model's weights, and it is that of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from models import VOCABULARY, llama, load, save_model  # noqa: E402
from tunewright.config import Base  # noqa: E402
from tunewright.errors import ExportUnsupported  # noqa: E402
from tunewright.evaluate.weights import SafetensorsWeights  # noqa: E402
from tunewright.registry.base_tensors import BaseTensors  # noqa: E402
from tunewright.registry.bases import BaseUnavailable, inspect_base  # noqa: E402
from tunewright.registry.safetensors_file import (  # noqa: E402
    INDEX,
    BadTensors,
    read_shapes,
    tensor_files,
    weight_files,
)

FIRST, SECOND, STALE = (f"model-{at:05d}-of-00003.safetensors" for at in (1, 2, 3))
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in two shards that an index names."""
    folder = save_model(llama(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    homes = {name: (FIRST, SECOND)[at % 2] for at, name in enumerate(names)}
    for shard in (FIRST, SECOND):
        part = {name: weights[name] for name in names if homes[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The weights, in one file, of another model with tensors of the same names and shapes."""
    return save_model(llama(), tmp_path / "other", seed=9) / "model.safetensors"


def add_stale_shard(folder: Path, other: Path) -> None:
    shutil.copy(other, folder / STALE)


def add_whole(folder: Path, other: Path) -> None:
    shutil.copy(other, folder / "model.safetensors")


def add_whole_and_lose_a_shard(folder: Path, other: Path) -> None:
    add_whole(folder, other)
    (folder / SECOND).unlink()


def keep_whole_beside_a_stale_shard(folder: Path, other: Path) -> None:
    add_whole(folder, other)
    for name in (FIRST, INDEX):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "files"),
    [
        (lambda folder, other: None, [FIRST, SECOND]),
        (add_stale_shard, [FIRST, SECOND]),
        (add_whole, ["model.safetensors"]),
        (add_whole_and_lose_a_shard, ["model.safetensors"]),
        (keep_whole_beside_a_stale_shard, ["model.safetensors"]),
    ],
)
def test_the_weights_are_those_that_transformers_loads(
    sharded: Path, other: Path, change: Callable[[Path, Path], None], files: list[str]
) -> None:
    change(sharded, other)
    loaded: dict[str, Any] = load(sharded).state_dict()
    weights = SafetensorsWeights(sharded)
    base = BaseTensors(sharded)

    assert [file.name for file in weight_files(sharded)] == files
    assert sorted(weights.names()) == sorted(loaded)
    assert all(torch.equal(weights.get(name, "cpu").float(), tensor) for name, tensor in loaded.items())
    assert [file.name for file in base.files] == files
    assert {name: stored.file for name, stored in base.tensors.items()} == tensor_files(sharded)
    assert {name: shape for name, (_, shape) in read_shapes(sharded).items()} == {
        name: tuple(tensor.shape) for name, tensor in loaded.items()
    }


def test_shapes_are_not_those_of_a_stale_shard(sharded: Path) -> None:
    save_file({EMBEDDINGS: torch.zeros(VOCABULARY + 1, 32)}, sharded / STALE)

    assert read_shapes(sharded)[EMBEDDINGS][1] == (VOCABULARY, 32)


def test_a_stale_shard_does_not_change_the_fingerprint(sharded: Path, other: Path) -> None:
    before = inspect_base(Base("b", str(sharded))).fingerprint
    add_stale_shard(sharded, other)

    assert inspect_base(Base("b", str(sharded))).fingerprint == before


def test_shards_without_an_index_are_all_taken(sharded: Path) -> None:
    (sharded / INDEX).unlink()

    assert [file.name for file in weight_files(sharded)] == [FIRST, SECOND]


def refused_everywhere(folder: Path, message: str) -> None:
    with pytest.raises(BaseUnavailable, match=message):
        inspect_base(Base("b", str(folder)))
    with pytest.raises(ExportUnsupported, match=message) as caught:
        BaseTensors(folder)
    assert caught.value.param == "base"
    for read in (weight_files, tensor_files, read_shapes, SafetensorsWeights):
        with pytest.raises((BadTensors, FileNotFoundError), match=message):
            read(folder)


def test_an_index_whose_shard_is_missing_is_refused_as_transformers_does(sharded: Path) -> None:
    (sharded / SECOND).unlink()

    with pytest.raises(OSError, match=SECOND):
        load(sharded)
    refused_everywhere(sharded, f"names {SECOND}, which does not exist")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"weight_map": {"a": 1}}', "cannot be read"),
        ('{"weight_map": {}}', "names no files"),
        (f'{{"weight_map": {{"a": "../model/{FIRST}"}}}}', "names .*, which does not exist"),
    ],
)
def test_a_faulty_index_is_refused(sharded: Path, index: str, message: str) -> None:
    (sharded / INDEX).write_text(index)

    refused_everywhere(sharded, message)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_model(llama(), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    refused_everywhere(folder, r"no \*\.safetensors weights \(pickled ones are never loaded\)")
