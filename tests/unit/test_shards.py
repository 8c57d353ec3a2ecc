"""A model's weights are assembled from the tensors of other files, in files of a limited size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunewright.evaluate.weights import SafetensorsWeights
from tunewright.export.model_files import copy_tokenizer
from tunewright.export.shards import pieces, write_shards

TENSORS = {
    "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "odd": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "b": torch.linspace(0, 1, 100),
    "c": torch.zeros(0, 4, dtype=torch.float16),
    "d": torch.linspace(-1, 1, 50).half(),
}


def sources(folder: Path) -> list[Path]:
    """The tensors in two files."""
    names = list(TENSORS)
    for at, part in enumerate((names[:3], names[3:])):
        save_file({name: TENSORS[name] for name in part}, folder / f"source-{at}.safetensors")
    return sorted(folder.glob("source-*"))


def test_one_file_has_all_tensors_to_the_bit(tmp_path: Path) -> None:
    found = [piece for file in sources(tmp_path) for piece in pieces(file)]
    out = tmp_path / "out"
    out.mkdir()

    size = write_shards(out, found)

    assert [file.name for file in out.iterdir()] == ["model.safetensors"]
    assert size == (out / "model.safetensors").stat().st_size
    loaded = load_file(out / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in loaded.items()} == {
        name: (t.dtype, t.shape) for name, t in TENSORS.items()
    }
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)


def test_numbers_begin_at_multiples_of_their_width(tmp_path: Path) -> None:
    found = [piece for file in sources(tmp_path) for piece in pieces(file)]
    out = tmp_path / "out"
    out.mkdir()

    write_shards(out, found[::-1])

    for piece in pieces(out / "model.safetensors"):
        assert piece.start % max(TENSORS[piece.name].element_size(), 1) == 0


def test_several_files_have_an_index_and_a_size(tmp_path: Path) -> None:
    found = [piece for file in sources(tmp_path) for piece in pieces(file)]
    out = tmp_path / "out"
    out.mkdir()

    write_shards(out, found, limit=150)

    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())
    assert set(index["weight_map"]) == set(TENSORS)
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{at:05d}-of-{len(files):05d}.safetensors" for at in range(1, len(files) + 1)]
    assert len(files) > 1
    for name in files:
        with safe_open(out / name, framework="pt") as file:
            held = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 (it is no dict)
        assert len(held) == 1 or sum(t.numel() * t.element_size() for t in held) <= 150
    weights = SafetensorsWeights(out)
    assert all(torch.equal(weights.get(name, "cpu"), TENSORS[name]) for name in TENSORS)


def test_companions_are_all_but_weights_config_and_description(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    (model / "folder").mkdir(parents=True)
    out.mkdir()
    kept = {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }
    left = {
        "config.json",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "modeling.py",
    }
    for name in kept | left:
        (model / name).write_text(name)

    copy_tokenizer(model, out, chat_template=None)

    assert {file.name for file in out.iterdir()} == kept
    assert all((out / name).read_text() == name for name in kept)
