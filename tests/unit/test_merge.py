"""A merged model is what the unmerged adapter computes: to the last bit where peft can tell, whatever peft trains."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig  # noqa: E402

import models  # noqa: E402
from lora import perturbed_base, random_lora, tampered  # noqa: E402
from models import (  # noqa: E402
    Tensors,
    bigcode,
    gemma,
    gpt2,
    llama,
    load_adapted,
    load_weights,
    logits,
    qwen2,
    save_adapter,
    save_model,
)  # fmt: skip
from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.errors import InvalidAdapter, InvalidRequest  # noqa: E402
from tunewright.export import merge as merge_module  # noqa: E402
from tunewright.export.merge import Merged, Progress, merge, plan_file  # noqa: E402
from tunewright.registry.mergeable import check_mergeable, merge_only  # noqa: E402

ATTENTION = ["q_proj", "v_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]


def cast(dtype: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t.to(dtype) for name, t in tensors.items()}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def merged_by_peft(base: Path, adapter: Path) -> Tensors:
    """The reference: peft merges into a float32 copy of the base, and the result is cast once."""
    merged = load_adapted(base, adapter).merge_and_unload(safe_merge=True)
    shared = {"lm_head.weight"} if merged.config.tie_word_embeddings else set()
    return {name: t.to(torch.bfloat16) for name, t in merged.state_dict().items() if name not in shared}


def assert_equal(out: Path, reference: Tensors) -> None:
    ours = load_weights(out)
    assert ours.keys() == reference.keys()
    different = [
        name for name, t in ours.items() if t.dtype != torch.bfloat16 or not torch.equal(t, reference[name])
    ]
    assert not different


def assert_loads(out: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16


def assert_computes_what_the_adapter_does(base: Path, adapter: Path, out: Path) -> None:
    """The error is only that of rounding to bfloat16, compared to the adapter's change."""
    wanted, plain = logits(load_adapted(base, adapter)), logits(models.load(base))
    ours = logits(models.load(out))
    assert (wanted - plain).norm() > 0.05 * plain.norm()
    assert (ours - wanted).norm() < 0.05 * (wanted - plain).norm()


# merges, bit for bit


VARIANTS: dict[str, tuple[PretrainedConfig, dict[str, Any]]] = {
    "plain": (llama(), {"target_modules": ATTENTION}),
    "all-linear": (llama(), {"target_modules": "all-linear", "lora_alpha": 3}),
    "pattern": (llama(), {"target_modules": r".*self_attn\.(q|v)_proj"}),
    "rslora": (llama(), {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 5}),
    "ranks": (
        llama(),
        {
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 11},
        },
    ),
    "layers": (llama(), {"target_modules": ATTENTION, "layers_to_transform": [1]}),
    "excluded": (llama(), {"target_modules": [*ATTENTION, "o_proj"], "exclude_modules": ["v_proj"]}),
    "embeddings": (llama(), {"target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 7}),
    "head": (llama(), {"target_modules": ["lm_head"]}),
    "dora": (llama(), {"target_modules": "all-linear", "use_dora": True}),
    "dora on embeddings": (
        llama(),
        {"target_modules": ["embed_tokens", "o_proj", "lm_head"], "use_dora": True, "use_rslora": True},
    ),
    "whole": (llama(), {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "a whole block": (qwen2(), {"target_modules": ["o_proj"], "modules_to_save": ["1.mlp", "0.self_attn.k_proj"]}),
    "all biases": (qwen2(), {"target_modules": ATTENTION, "bias": "all"}),
    "its own biases": (qwen2(), {"target_modules": ATTENTION, "bias": "lora_only"}),
    "LoRA biases": (qwen2(), {"target_modules": ATTENTION, "lora_bias": True, "lora_alpha": 3}),
    "both biases": (qwen2(), {"target_modules": ATTENTION, "lora_bias": True, "bias": "lora_only"}),
    "tokens": (llama(), {"target_modules": ATTENTION, "trainable_token_indices": [5, 3, 90]}),
    "tokens of both": (
        llama(),
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [5], "lm_head": [3, 7]}},
    ),
    "Conv1D": (gpt2(), {"target_modules": CONV1D, "fan_in_fan_out": True}),
    "Conv1D and linear": (gpt2(), {"target_modules": [*CONV1D, "lm_head", "wte"], "use_rslora": True}),
    "Conv1D, DoRA": (gpt2(), {"target_modules": CONV1D, "use_dora": True}),
    "Conv1D, biases": (gpt2(), {"target_modules": CONV1D, "bias": "all", "lora_bias": True}),
    "linear, named as Conv1D": (bigcode(), {"target_modules": CONV1D, "use_dora": True}),
    "scaled embeddings": (gemma(tied=False), {"target_modules": ["embed_tokens", "down_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_bit_for_bit_what_peft_merges_in_float32(variant: str, tmp_path: Path) -> None:
    config, options = VARIANTS[variant]
    base = save_model(config, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    done = merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", merged_by_peft(base, adapter))
    assert_loads(tmp_path / "out")
    assert_computes_what_the_adapter_does(base, adapter, tmp_path / "out")
    before = load_weights(base)
    changed = [n for n, t in load_weights(tmp_path / "out").items() if not torch.equal(t, before[n])]
    assert done.changed == len(changed)
    assert not done.untied


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_type_of_numbers_is_merged_in_float32(
    base_dtype: Any, adapter_dtype: Any, tmp_path: Path
) -> None:
    base = save_model(llama(), tmp_path / "base", dtype=base_dtype)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION, change=cast(adapter_dtype))
    merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", merged_by_peft(base, adapter))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16", "as the weights are"


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(llama(), tmp_path / "base")
    options = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    monkeypatch.setattr("tunewright.export.arithmetic.BLOCK_BYTES", 200)
    merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", merged_by_peft(base, adapter))


def test_files_that_leave_out_the_models_prefix_keep_their_names(tmp_path: Path) -> None:
    base = save_model(gpt2(tied=True), tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=[*CONV1D, "wte"], fan_in_fan_out=True)
    merge(base, adapter, tmp_path / "with")
    weights = {name.removeprefix("transformer."): t for name, t in load_weights(base).items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert merge(base, adapter, tmp_path / "without").untied
    assert_loads(tmp_path / "without")
    assert torch.equal(logits(models.load(tmp_path / "without")), logits(models.load(tmp_path / "with")))


# tied embeddings


TIED: dict[str, tuple[dict[str, Any], bool]] = {
    "neither": ({"target_modules": ["MLP"]}, False),
    "embeddings": ({"target_modules": ["EMBED", "MLP"]}, True),
    "head": ({"target_modules": ["lm_head", "MLP"]}, True),
    "both": ({"target_modules": ["lm_head", "EMBED"]}, True),
    "DoRA on both": ({"target_modules": ["lm_head", "EMBED"], "use_dora": True}, True),
    "whole head": ({"target_modules": ["MLP"], "modules_to_save": ["lm_head"]}, True),
    "whole embeddings": ({"target_modules": ["MLP"], "modules_to_save": ["EMBED"]}, True),
    "both whole": ({"target_modules": ["MLP"], "modules_to_save": ["EMBED", "lm_head"]}, True),
    "head, whole embeddings": ({"target_modules": ["lm_head"], "modules_to_save": ["EMBED"]}, True),
    "kept tied": ({"target_modules": ["EMBED"], "ensure_weight_tying": True}, False),
    "whole, kept tied": (
        {"target_modules": ["MLP"], "modules_to_save": ["EMBED"], "ensure_weight_tying": True},
        False,
    ),
    "tokens": ({"target_modules": ["MLP"], "trainable_token_indices": [3, 50]}, False),
    "tokens of the head": ({"target_modules": ["MLP"], "trainable_token_indices": {"lm_head": [3, 5]}}, True),
    "tokens of each": (
        {"target_modules": ["MLP"], "trainable_token_indices": {"EMBED": [3, 50], "lm_head": [5]}},
        True,
    ),
}  # fmt: skip
NAMES = {
    "gpt2": ("wte", "c_fc", "transformer.wte"),
    "other": ("embed_tokens", "up_proj", "model.embed_tokens"),
}


def named(value: Any, embed: str, mlp: str) -> Any:
    if isinstance(value, dict):
        return {named(k, embed, mlp): named(v, embed, mlp) for k, v in value.items()}
    if isinstance(value, list):
        return [named(v, embed, mlp) for v in value]
    return {"EMBED": embed, "MLP": mlp}.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("in_file", ["head left out", "head there"])
@pytest.mark.parametrize("architecture", [pytest.param("qwen2", marks=pytest.mark.soak), "gpt2", "gemma"])
@pytest.mark.parametrize("variant", TIED)
def test_a_tied_base_is_untied_where_only_one_side_is_adapted(
    architecture: str, variant: str, in_file: str, tmp_path: Path
) -> None:
    """The unmerged forward pass is the truth: peft's own merge into a shared weight changes both sides."""
    embed, mlp, embedding = NAMES.get(architecture, NAMES["other"])
    options, untied = TIED[variant]
    untied = untied or (architecture == "gpt2" and "kept tied" in variant)  # peft ties no `wte`
    base = save_model(getattr(models, architecture)(tied=True), tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **named(options, embed, mlp))
    if in_file == "head there":
        weights = load_weights(base)
        weights["lm_head.weight"] = weights[f"{embedding}.weight"].clone()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    done = merge(base, adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert done.untied == untied
    assert config["tie_word_embeddings"] is not untied
    assert ("lm_head.weight" in load_weights(tmp_path / "out")) == (untied or in_file == "head there")
    assert_loads(tmp_path / "out")
    assert_computes_what_the_adapter_does(base, adapter, tmp_path / "out")


def untied_copy(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    weights = load_weights(base)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.mark.parametrize("variant", [name for name, (_, untied) in TIED.items() if untied])
def test_an_untied_base_is_bit_for_bit_what_peft_makes_of_an_untied_copy(
    variant: str, tmp_path: Path
) -> None:
    base = save_model(qwen2(tied=True), tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **named(TIED[variant][0], "embed_tokens", "up_proj"))
    merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", merged_by_peft(untied_copy(base, tmp_path / "copy"), adapter))


def test_the_embeddings_that_peft_saves_along_count(tmp_path: Path) -> None:
    """peft loads them into the weight that a tied base shares, whichever side they are saved with."""
    base = save_model(qwen2(tied=True), tmp_path / "base")

    def moved(tensors: Tensors) -> Tensors:
        return {n: t + 0.25 if "base_layer" in n else t for n, t in tensors.items()}

    for side in ("embed_tokens", "lm_head"):
        adapter = save_adapter(base, tmp_path / side, target_modules=[side, "up_proj"], change=moved)
        out = tmp_path / f"{side}-out"
        merge(base, adapter, out)
        assert_computes_what_the_adapter_does(base, adapter, out)


def test_halves_that_should_be_tied_and_differ_are_refused(tmp_path: Path) -> None:
    base = save_model(qwen2(tied=True), tmp_path / "base")

    def apart(tensors: Tensors) -> Tensors:
        return {n: t + 0.1 if "lm_head.lora_A" in n else t for n, t in tensors.items()}

    options: dict[str, Any] = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = save_adapter(base, tmp_path / "adapter", change=apart, **options)
    with pytest.raises(InvalidRequest, match="differ") as caught:
        merge(base, adapter, tmp_path / "out")
    assert caught.value.param == "adapter_config.ensure_weight_tying"


# the folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The embedded base, with its tokenizer, and an adapter."""
    folder = tmp_path_factory.mktemp("tiny")
    return embedded_base_path(), random_lora(embedded_base_path(), folder / "adapter", strength=0.1, seed=3)


def test_the_folder_is_whole(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny[0], base)
    for name in ("modeling_x.py", "tokenization_x.py", "tokenizer.py", "README.md", "optimizer.bin"):
        (base / name).write_text("x")
    config = json.loads((base / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype", "float32")
    (base / "config.json").write_text(json.dumps({**config, "kept": [1]}))
    out = tmp_path / "out"
    done = merge(base, tiny[1], out, shard_bytes=2_000_000)
    written = json.loads((out / "config.json").read_text())
    assert written == {k: v for k, v in config.items() if k != "torch_dtype"} | {
        "dtype": "bfloat16",
        "kept": [1],
    }
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert done.shards == len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((out / name).stat().st_size < 2_010_000 for name in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    homes = {name: path.name for path in out.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == homes
    assert (
        index["metadata"]["total_size"]
        == done.bytes
        == sum(2 * t.numel() for t in load_weights(out).values())
    )
    tokenizer = {p.name for p in tiny[0].iterdir()} - {"config.json", "model.safetensors"}
    tokenizer = {name for name in tokenizer if not name.endswith((".md", ".py"))}
    assert {p.name for p in out.iterdir()} == tokenizer | {
        *shards,
        "config.json",
        "model.safetensors.index.json",
    }
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in tokenizer)
    assert_equal(out, merged_by_peft(tiny[0], tiny[1]))
    assert_loads(out)
    messages = [{"role": "user", "content": "What color is the sky?"}]
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)


@pytest.mark.parametrize("where", ["file", "config", "both", "nowhere"])
def test_the_template_of_the_training_takes_the_place_of_the_bases(
    where: str, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    base, template = tmp_path / "base", "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    shutil.copytree(tiny[0], base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if where in ("file", "both"):
        (base / "chat_template.jinja").write_text("{{ messages }}file")
        (base / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}json"}))
        (base / "additional_chat_templates").mkdir()
        (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}tools")
    if where in ("config", "both"):
        config["chat_template"] = "{{ messages }}config"
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    merge(base, tiny[1], tmp_path / "own", chat_template=template)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "own")
    assert loaded.chat_template == template
    assert not (tmp_path / "own" / "chat_template.json").exists()
    assert "chat_template" not in json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())
    assert loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<a>"
    merge(base, tiny[1], tmp_path / "theirs")
    theirs = AutoTokenizer.from_pretrained(base).chat_template
    assert AutoTokenizer.from_pretrained(tmp_path / "theirs").chat_template == theirs


def test_the_same_inputs_make_the_same_bytes(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        merge(*tiny, tmp_path / name, shard_bytes=2_000_000)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_one_shard_has_no_index_and_is_as_the_library_writes_it(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    merge(*tiny, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    save_file(load_weights(tmp_path / "out"), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_the_progress_reaches_the_end(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    progress: list[Progress] = []
    done = merge(*tiny, tmp_path / "out", shard_bytes=2_000_000, on_progress=progress.append)
    last = progress[-1]
    assert (last.tensors, last.bytes, last.shards) == (last.all_tensors, last.all_bytes, last.all_shards)
    assert (last.tensors, last.bytes, last.shards) == (done.tensors, done.bytes, done.shards)
    assert all(a.bytes <= b.bytes for a, b in itertools.pairwise(progress))
    assert len({t.tensors for t in progress}) == done.tensors + 1


# stopped and killed


CHILD = """
import sys
from pathlib import Path
from tunewright.export.merge import merge

def report(progress):
    if progress.shards == 2 and progress.tensors == int(sys.argv[4]):
        print("here", flush=True)
        sys.stdin.read()

merge(*map(Path, sys.argv[1:4]), shard_bytes=1_000_000, on_progress=report)
"""


def child(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_killed_in_the_middle_it_goes_on_from_its_whole_shards(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    progress: list[Progress] = []
    whole = merge(*tiny, tmp_path / "whole", shard_bytes=1_000_000, on_progress=progress.append)
    within = (
        max(p.tensors for p in progress if p.shards == 2) - 1
    )  # all but the last tensor of the third shard
    out = tmp_path / "out"
    with child(CHILD, *tiny, out, within) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    shards = {path.name: path.stat() for path in out.glob("model-*")}
    assert len(shards) == 2
    assert [path.name for path in out.glob(".*")], "it was not killed within a shard"
    done = merge(*tiny, out, shard_bytes=1_000_000)
    assert done == Merged(**{**vars(whole), "kept": 2})
    assert all((out / name).stat().st_ino == stat.st_ino for name, stat in shards.items())
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_whole_model_is_not_written_again(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(*tiny, out, shard_bytes=1_000_000)
    shards = {path.name: path.stat().st_ino for path in out.glob("model-*.safetensors")}

    assert merge(*tiny, out, shard_bytes=1_000_000).kept == len(shards)
    assert all((out / name).stat().st_ino == inode for name, inode in shards.items())


def test_what_was_made_of_other_inputs_is_not_gone_on_with(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = tiny
    other_adapter = random_lora(base, tmp_path / "other", strength=0.1, seed=4)
    other_base = perturbed_base(base, tmp_path / "base", strength=0.1)  # with the same headers
    cases: list[tuple[Path, Path, dict[str, Any]]] = [
        (base, other_adapter, {}),
        (other_base, adapter, {}),
        (base, tampered(adapter, tmp_path / "alpha", lora_alpha=3.0), {}),
        (base, adapter, {"chat_template": "{{ messages }}"}),
        (base, adapter, {"shard_bytes": 900_000}),
    ]
    out = tmp_path / "out"
    for at, (of, adapted, options) in enumerate(cases):
        shutil.rmtree(out, ignore_errors=True)
        plan_file(out).unlink(missing_ok=True)
        merge(base, adapter, out, shard_bytes=1_000_000)
        (out / "left-over").write_text("x")
        options = {"shard_bytes": 1_000_000, **options}
        assert merge(of, adapted, out, **options).kept == 0, at
        merge(of, adapted, tmp_path / str(at), **options)
        assert hashes(out) == hashes(tmp_path / str(at))


def test_a_folder_that_is_not_its_own_is_left_alone(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError):
        merge(*tiny, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


# memory


MEASURE = """
import sys
from pathlib import Path
from tunewright.export.merge import merge

def memory(field):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(field)]
    return int(line.split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
done = merge(*map(Path, sys.argv[1:4]), shard_bytes=100_000_000)
print(memory("VmHWM") - before, done.bytes, done.shards)
"""


def test_memory_is_one_tensors_not_the_models(tmp_path: Path) -> None:
    """400 MB in several files: a largest tensor of 33 MB, of which the float32 change takes 66."""
    base = tmp_path / "base"
    shapes = {f"model.layers.{n}.self_attn.q_proj.weight": (2048, 2048) for n in range(40)}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (16000, 1024))
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    noise = torch.randn(16_000, 1024).to(torch.bfloat16).flatten()
    names = sorted(shapes)
    for at in range(4):
        part = {n: noise[: torch.Size(shapes[n]).numel()].reshape(shapes[n]).clone() for n in names[at::4]}
        save_file(part, base / f"model-{at}.safetensors", metadata={"format": "pt"})
    adapter: Tensors = {}
    for module, (outer, inner) in (
        (n.removesuffix(".weight"), s) for n, s in shapes.items() if "embed" not in n
    ):
        prefix = f"base_model.model.{module}"
        adapter |= {
            f"{prefix}.lora_A.weight": torch.randn(8, inner),
            f"{prefix}.lora_B.weight": torch.randn(outer, 8),
        }
    (tmp_path / "adapter").mkdir()
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with child(MEASURE, base, tmp_path / "adapter", tmp_path / "out") as process:
        assert process.stdout is not None
        peak, size, shards = map(int, process.stdout.readline().split())
    assert size > 400e6
    assert shards >= 4
    assert peak < 140e6, f"{peak / 1e6:.0f} MB"


# refused


def refused(base: Path, adapter: Path) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_mergeable(base, adapter)
    assert caught.value.status == 400
    return caught.value


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = save_model(llama(), tmp_path / "base")
    return base, save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ({"text_config": {}}, "multimodal"),
        ({"vision_config": {}}, "multimodal"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"num_local_experts": 8}, "mixture of experts"),
    ],
)
def test_a_base_of_another_kind_is_refused(
    pair: tuple[Path, Path], change: dict[str, Any], message: str
) -> None:
    check_mergeable(*pair)
    edit(pair[0], "config.json", **change)
    error = refused(*pair)
    assert message in error.message
    assert (error.code, error.param) == ("export_unsupported", "base")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", torch.zeros(4, 4, dtype=torch.int32), "quantized"),
        ("model.layers.0.self_attn.q_proj.weight", torch.zeros(32, 16, dtype=torch.uint8), "quantized"),
        ("model.layers.0.self_attn.q_proj.weight", torch.zeros(32, 32).to(torch.float8_e4m3fn), "F8_E4M3"),
        ("model.layers.0.self_attn.q_proj.weight_scale", torch.zeros(1), "quantized"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", torch.zeros(4, 4), "experts"),
    ],
)
def test_packed_weights_and_experts_are_known_by_their_tensors(
    pair: tuple[Path, Path], name: str, tensor: Any, message: str
) -> None:
    weights = load_weights(pair[0]) | {name: tensor}
    save_file(weights, pair[0] / "model.safetensors", metadata={"format": "pt"})
    error = refused(*pair)
    assert message in error.message
    assert error.code == "export_unsupported"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
    ],
)
def test_what_is_not_merged_names_its_field(
    pair: tuple[Path, Path], change: dict[str, Any], field: str
) -> None:
    edit(pair[1], "adapter_config.json", **change)
    error = refused(*pair)
    assert (error.code, error.param) == ("export_unsupported", f"adapter_config.{field}")
    assert field in error.message


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {f"{Q0}.lora_A.weight": None}, "no lora_A"),
        ({}, {f"{Q0}.lora_A.weight": None, f"{Q0}.lora_B.weight": None}, "incomplete"),
        ({}, {f"{Q0}.lora_A.weight": torch.zeros(4, 31)}, "another base"),
        ({}, {f"{Q0}.lora_B.weight": torch.zeros(31, 4)}, "another base"),
        ({"r": 5}, {}, "has rank 4 in its weights and 5"),
        ({}, {f"{Q0}.lora_magnitude_vector": torch.zeros(32)}, "use_dora"),
        ({"use_dora": True}, {}, "no lora_magnitude_vector"),
        ({}, {f"{Q0}.lora_B.bias": torch.zeros(32)}, "lora_bias off"),
        ({"lora_bias": True}, {f"{Q0}.lora_B.bias": torch.zeros(32)}, "no bias to add it to"),
        ({}, {"base_model.model.lm_head.weight": torch.zeros(96, 32)}, "modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, {"base_model.model.lm_head.weight": torch.zeros(97, 32)}, "vocabulary"),
        ({"modules_to_save": ["lm_head"]}, {}, "has no lm_head"),
        ({"modules_to_save": ["score"]}, {}, "has no score"),
        ({"modules_to_save": ["mlp"]}, {"base_model.model.model.layers.0.mlp.up_proj.weight": torch.zeros(48, 32)},
         "incomplete"),
        ({"modules_to_save": ["q_proj"]}, {f"{Q0}.weight": torch.zeros(32, 32),
         f"{Q0.replace('.0.', '.1.')}.weight": torch.zeros(32, 32)}, "two ways"),
        ({}, {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32),
              "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(32, 4)}, "no tensor"),
        ({}, {f"{Q0}.lora_diag": torch.zeros(4)}, "no LoRA weight that is known"),
        ({}, {"base_model.model.other.lora_magnitude_vector": torch.zeros(4)}, "other has no LoRA weights"),
        ({"trainable_token_indices": [1]}, {}, "no trained tokens"),
        ({"trainable_token_indices": [1, 2]},
         {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 32)}, "2 train"),
        ({"trainable_token_indices": [99]},
         {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 32)}, "1 train"),
        ({"trainable_token_indices": [1, 1]},
         {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(2, 32)}, "twice"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_says_where(
    pair: tuple[Path, Path], config: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def changed(before: Tensors) -> Tensors:
        return {name: t for name, t in (before | tensors).items() if t is not None}

    error = refused(pair[0], tampered(pair[1], tmp_path / "tampered", changed, **config))
    assert message in error.message
    assert error.code in (
        "export_unsupported",
        "adapter_invalid",
        "adapter_does_not_fit",
        "adapter_unsupported",
    )


def test_ways_to_change_tied_embeddings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    base = save_model(qwen2(tied=True), tmp_path / "base")
    tokens: dict[str, Any] = {"target_modules": ["lm_head"], "trainable_token_indices": [3]}
    error = refused(base, save_adapter(base, tmp_path / "a", **tokens))
    assert error.param == "adapter_config.trainable_token_indices"
    dora: dict[str, Any] = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True, "use_dora": True}
    error = refused(base, save_adapter(base, tmp_path / "b", **dora))
    assert error.param == "adapter_config.ensure_weight_tying"


def test_numbers_that_are_none_are_not_merged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def broken(tensors: Tensors) -> Tensors:
        tensors[f"{Q0}.lora_B.weight"][3, 1] = float("nan")
        return tensors

    with pytest.raises(InvalidAdapter, match=r"layers\.0\.self_attn\.q_proj.*NaN"):
        merge(pair[0], tampered(pair[1], tmp_path / "nan", broken), tmp_path / "out")


def test_pickled_weights_are_never_opened(pair: tuple[Path, Path]) -> None:
    (pair[1] / "adapter_model.safetensors").rename(pair[1] / "adapter_model.bin")
    assert refused(*pair).code == "pickled_weights"


def test_files_beside_the_models_own_are_not_merged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Mistral's folders have the same weights twice, under other names."""
    save_file({"layers.0.wq": torch.zeros(4)}, pair[0] / "consolidated.safetensors")
    merge(*pair, tmp_path / "out")
    assert_equal(tmp_path / "out", merged_by_peft(*pair))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, None),
        ({"use_dora": False, "bias": "none", "modules_to_save": [], "lora_bias": False}, None),
        ({"peft_type": "LOHA"}, None),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_can_only_be_served_merged_is_told(config: dict[str, Any], field: str | None) -> None:
    message = merge_only(config)
    assert (message is None) if field is None else (message is not None and message.startswith(f"{field} "))


def test_checking_needs_no_torch() -> None:
    program = "import sys, tunewright.registry.mergeable, tunewright.export; print('torch' in sys.modules)"
    with child(program) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "False\n"


def test_a_merge_has_a_stated_size_for_shards() -> None:
    assert merge_module.SHARD_BYTES == 5 * 10**9
