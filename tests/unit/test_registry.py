"""Artifacts are named by their content, published whole, and bases say what is wrong with them."""

from __future__ import annotations

import json
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunewright.atomic import publish_folder, write_atomically
from tunewright.config import Base, embedded_base_path
from tunewright.registry.bases import BaseUnavailable, inspect_base
from tunewright.registry.content import adapter_sha256, model_sha256
from tunewright.registry.workspace import Workspace
from tunewright.rows import templates
from tunewright.rows.templates import check_template, folder_template

CONFIG = {
    "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none",
    "use_rslora": False, "base_model_name_or_path": "tiny",
}  # fmt: skip


def adapter(folder: Path, config: dict[str, Any] | None = None, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config or CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


# an adapter's hash


def test_the_hash_does_not_depend_on_order_or_on_paths(tmp_path: Path) -> None:
    reference = adapter_sha256(adapter(tmp_path / "a"))
    reordered = dict(reversed(CONFIG.items())) | {"target_modules": ["v_proj", "q_proj"]}
    elsewhere = {
        **CONFIG,
        "base_model_name_or_path": "/home/somebody/tiny",
        "peft_version": "9",
        "revision": "x",
    }
    assert adapter_sha256(adapter(tmp_path / "b", reordered)) == reference
    assert adapter_sha256(adapter(tmp_path / "c", elsewhere)) == reference
    (tmp_path / "a" / "README.md").write_text("a card")
    assert adapter_sha256(tmp_path / "a") == reference


def test_what_is_left_out_means_what_peft_writes_for_it(tmp_path: Path) -> None:
    reference = adapter_sha256(adapter(tmp_path / "a", {**CONFIG, "alpha_pattern": {"q_proj": 4}}))
    explicit = {
        **CONFIG, "lora_alpha": 16.0, "alpha_pattern": {"q_proj": 4.0}, "use_dora": False, "rank_pattern": {},
        "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None, "layers_pattern": [],
    }  # fmt: skip
    assert adapter_sha256(adapter(tmp_path / "b", explicit)) == reference


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": 32},
        {"r": 4},
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear"},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"alpha_pattern": {"q_proj": 4}},
        {"rank_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": 0},
    ],
)
def test_the_hash_changes_with_what_the_adapter_computes(tmp_path: Path, change: dict[str, Any]) -> None:
    reference = adapter_sha256(adapter(tmp_path / "a"))
    assert adapter_sha256(adapter(tmp_path / "b", {**CONFIG, **change})) != reference


def test_the_hash_changes_with_one_bit_of_the_weights(tmp_path: Path) -> None:
    assert adapter_sha256(adapter(tmp_path / "a")) != adapter_sha256(
        adapter(tmp_path / "b", weights=b"weightr")
    )


def test_a_models_hash_covers_names_and_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name, content in (("a", "x"), ("a", "y"), ("b", "x")):
        folder = tmp_path / (name + content)
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(model_sha256(folder))
    assert len(hashes) == 3


# publishing


def test_an_artifact_appears_whole_under_its_hash(data: Workspace, tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    sha256 = data.artifacts.put(source)
    stored = data.artifacts.local(sha256)
    assert sha256 == adapter_sha256(source) == adapter_sha256(stored)
    assert stored == data.path / "artifacts" / sha256
    assert data.artifacts.hashes() == {sha256}
    shutil.rmtree(source)
    assert adapter_sha256(stored) == sha256, "it does not need its source"
    assert list(data.tmp.iterdir()) == []


def test_an_artifact_is_published_once_by_many(data: Workspace, tmp_path: Path) -> None:
    for round in range(5):
        source = adapter(tmp_path / str(round), weights=b"w" * (100_000 + round))
        with ThreadPoolExecutor(8) as pool:
            hashes = set(pool.map(lambda _, source=source: data.artifacts.put(source), range(8)))
        assert hashes == {adapter_sha256(source)}
        assert adapter_sha256(data.artifacts.local(hashes.pop())) == adapter_sha256(source)
    assert list(data.tmp.iterdir()) == []


def test_of_an_adapter_no_other_files_are_stored(data: Workspace, tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    (source / "complete.json").write_text("{}")
    (source / "optimizer.pt").write_text("large")
    stored = data.artifacts.local(data.artifacts.put(source))
    assert sorted(path.name for path in stored.iterdir()) == sorted(CONFIG_FILES)


CONFIG_FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_a_model_is_stored_whole_also_with_an_adapters_config_in_it(data: Workspace, tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    (source / "config.json").write_text("{}")
    (source / "dangling").symlink_to("nowhere")
    sha256 = data.artifacts.put(source)
    assert sha256 == model_sha256(source)
    assert sorted(path.name for path in data.artifacts.local(sha256).iterdir()) == sorted(
        (*CONFIG_FILES, "config.json")
    )


def test_an_artifact_has_a_size_and_an_age_until_it_is_removed(data: Workspace, tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    sha256 = data.artifacts.put(source)
    stored = data.artifacts.stat(sha256)
    assert stored.bytes == sum(path.stat().st_size for path in source.iterdir())
    assert abs(stored.since - time.time()) < 60
    data.artifacts.remove(sha256, lambda: False)
    with pytest.raises(FileNotFoundError):
        data.artifacts.stat(sha256)


def test_a_crash_before_the_rename_leaves_nothing_in_sight(
    data: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunewright.registry.artifacts.publish_folder", crash)
    with pytest.raises(KeyboardInterrupt):
        data.artifacts.put(adapter(tmp_path / "a"))
    assert data.artifacts.hashes() == set()
    monkeypatch.undo()
    data.clear_unfinished()
    assert list(data.tmp.iterdir()) == []
    assert data.artifacts.local(data.artifacts.put(tmp_path / "a")).is_dir()


def test_removing_an_artifact_twice_is_no_error(data: Workspace, tmp_path: Path) -> None:
    sha256 = data.artifacts.put(adapter(tmp_path / "a"))
    assert data.artifacts.remove(sha256, lambda: False)
    assert not data.artifacts.remove(sha256, lambda: False)
    assert not data.artifacts.local(sha256).exists()
    assert list(data.tmp.iterdir()) == []


def test_folders_are_private(data: Workspace) -> None:
    for folder in (data.files, data.jobs, data.path / "artifacts", data.engines, data.run, data.tmp):
        assert folder.stat().st_mode & 0o077 == 0


def test_an_engines_folder_stays_inside_whatever_its_name(data: Workspace) -> None:
    assert data.engine("org/model").parent == data.engines
    assert data.engine("org/model") != data.engine("org_model")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"


def test_publishing_over_a_folder_fails_and_keeps_it(tmp_path: Path) -> None:
    adapter(tmp_path / "old", weights=b"old")
    with pytest.raises(OSError, match="not empty"):
        publish_folder(adapter(tmp_path / "new", weights=b"new"), tmp_path / "old")
    assert (tmp_path / "old" / "adapter_model.safetensors").read_bytes() == b"old"


# bases


def model_folder(folder: Path, config: object = None, header: bytes = b"{}") -> Path:
    folder.mkdir()
    text = json.dumps({"model_type": "llama"} if config is None else config)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    return folder


def info(folder: Path) -> Any:
    return inspect_base(Base("b", str(folder)))


def test_the_embedded_base_is_usable() -> None:
    found = info(embedded_base_path())
    assert found.context == 1024
    assert found.chat_template
    assert found.tool_call_parser == "hermes"
    assert found.internal_name == f"base-{found.fingerprint[:32]}"


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = info(model_folder(tmp_path / "a")).fingerprint
    assert info(model_folder(tmp_path / "b")).fingerprint == first
    assert info(model_folder(tmp_path / "c", header=b'{"x": {"shape": [2]}}')).fingerprint != first
    assert info(model_folder(tmp_path / "d", {"model_type": "qwen3"})).fingerprint != first
    (tmp_path / "a" / "README.md").write_text("a card")
    assert info(tmp_path / "a").fingerprint == first
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    assert info(tmp_path / "a").fingerprint != first


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 256}}, 256),
        ({}, 2048),
        ({"max_position_embeddings": None}, 2048),
        ({"text_config": None, "max_position_embeddings": 64}, 64),
    ],
)
def test_the_context_is_the_configs(tmp_path: Path, config: dict[str, Any], context: int) -> None:
    assert info(model_folder(tmp_path / "a", config)).context == context


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailable, match="there is no folder"):
        info(tmp_path / "none")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailable, match=r"no model folder: it has no config\.json"):
        info(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    (model_folder(tmp_path / "a") / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(BaseUnavailable, match=r"no \*\.safetensors weights"):
        info(tmp_path / "a")


@pytest.mark.parametrize("text", ["{", "", "\xff", "[]", "null", '{"max_position_embeddings": "many"}'])
def test_a_broken_config(tmp_path: Path, text: str) -> None:
    (model_folder(tmp_path / "a") / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(BaseUnavailable, match=r"config\.json"):
        info(tmp_path / "a")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BaseUnavailable):
        info(tmp_path / "model.gguf")


def test_a_base_of_the_hub_is_known_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters that are trained on it refer to it by this name."""
    folder = model_folder(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert inspect_base(Base("b", "org/model")).hub_id == "org/model"
    assert inspect_base(Base("b", str(folder))).hub_id is None


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: object, **__: object) -> str:
        raise ConnectionError("Got: offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    with pytest.raises(BaseUnavailable, match=r"could not be fetched from the hub: offline\. Give a"):
        inspect_base(Base("b", "org/model"))


# templates


def test_the_template_is_found_where_folders_keep_it(tmp_path: Path) -> None:
    assert folder_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "old"}))
    assert folder_template(tmp_path) == "old"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert folder_template(tmp_path) == "d"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert folder_template(tmp_path) == "new"


@pytest.mark.parametrize("text", ["{}", '{"chat_template": 5}', "{", "[]"])
def test_a_folder_without_a_template_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert folder_template(tmp_path) is None


def test_a_template_is_checked_as_text() -> None:
    assert (
        check_template(
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        )
        is None
    )
    assert check_template("{% for m in messages %}{% break %}{% endfor %}") is None
    assert "line 2" in (check_template("messages\n{% for %}") or "")
    assert "never mentions" in (check_template("hello") or "")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}",
            "more than 1 s",
        ),
        ("{% for a in range(99999) %}{{ messages }}{% endfor %}", "more than 1048576 characters"),
        ("{{ 'x' * 10**9 }}{{ messages }}", "MiB of memory"),
        ("{{ messages }}" + "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "nested too deeply"),
    ],
)
def test_a_template_without_end_is_refused_where_it_comes_in(
    template: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 1)
    assert why in (check_template(template) or "")


@pytest.mark.parametrize(
    "only_for",
    [
        "tools",
        "messages | length > 3",
        "messages[0].role == 'system'",
        "messages[-1].role == 'tool'",
        "messages[1] is defined and messages[1].tool_calls is defined",
    ],
)
def test_a_template_without_end_for_some_conversations_is_refused_too(
    only_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_SECONDS", 1)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if " + only_for + " %}" + loop + "{% endif %}{{ messages }}"
    assert "more than 1 s" in (check_template(template) or "")


def test_a_template_that_refuses_the_short_conversation_of_the_check_is_taken() -> None:
    assert check_template("{{ raise_exception('tools are needed') }}{{ messages }}") is None
