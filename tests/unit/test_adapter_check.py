"""Conditions for serving an adapter: each refusal says what is wrong, where, and what to do."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import CONFIG, LAYERS, WIDTHS, Tensors, adapter_files, lora_tensors, safetensors, zeros
from tunewright.config import embedded_base_path
from tunewright.errors import InvalidAdapter
from tunewright.registry.adapter_check import CheckedAdapter, check_adapter, check_numbers
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.content import adapter_sha256
from tunewright.registry.safetensors_file import BadTensors, read_finite, read_tensors, write_tensors

Q0 = "model.layers.0.self_attn.q_proj"
A0, B0 = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"


@pytest.fixture(scope="module")
def base() -> BaseModules:
    return BaseModules("tiny", embedded_base_path())


def check(
    base: BaseModules,
    config: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    *,
    weights: bytes | None = None,
    max_rank: int = 64,
) -> CheckedAdapter:
    files = adapter_files(config, tensors)
    content = files["adapter_model.safetensors"] if weights is None else weights
    return check_adapter(files["adapter_config.json"], io.BytesIO(content), base, max_rank)


def refused(base: BaseModules, *args: Any, **options: Any) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        check(base, *args, **options)
    return caught.value


def written(base: BaseModules, folder: Path, config: dict[str, Any] | None, tensors: Tensors | None) -> Path:
    files = adapter_files(config, tensors)
    weights = io.BytesIO(files["adapter_model.safetensors"])
    folder.mkdir()
    check_adapter(files["adapter_config.json"], weights, base, 64).write(weights, folder)
    return folder


# accepted adapters


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_sound_adapter_is_taken(base: BaseModules, dtype: str) -> None:
    checked = check(base, tensors=lora_tensors(dtype=dtype))
    assert (checked.config.rank, checked.config.alpha, checked.config.scaling) == (4, 8.0, 2.0)
    assert checked.targets == ["q_proj", "v_proj"]
    assert len(checked.modules) == 2 * LAYERS


def test_every_linear_module_can_be_adapted(base: BaseModules) -> None:
    modules = {f"model.layers.{n}.{name}": widths for n in range(LAYERS) for name, widths in WIDTHS.items()}
    names = [name.partition(".")[2] for name in WIDTHS]
    assert check(base, {"target_modules": names}, lora_tensors(modules)).targets == sorted(names)


def test_embeddings_are_taken_in_their_own_form(base: BaseModules) -> None:
    """The head is tied to the embeddings here, and missing from the base's files."""
    tensors = lora_tensors() | lora_tensors({"lm_head": (2048, 256)})
    name = "base_model.model.model.embed_tokens"
    tensors |= {
        f"{name}.lora_embedding_A": zeros(4, 2048),
        f"{name}.lora_embedding_B": zeros(256, 4),
        f"{name}.base_layer.weight": zeros(2048, 256, dtype="BF16"),
    }
    targets = ["q_proj", "v_proj", "lm_head", "embed_tokens"]
    assert check(base, {"target_modules": targets}, tensors).targets == sorted(targets)
    tensors[f"{name}.base_layer.weight"] = zeros(2050, 256)
    assert "another vocabulary" in str(refused(base, {"target_modules": targets}, tensors))


@pytest.mark.parametrize(
    "config",
    [
        {"task_type": None},
        {"use_rslora": True},
        {"modules_to_save": []},
        {"init_lora_weights": "gaussian"},
        {"base_model_name_or_path": "/home/somebody/llama"},
        {"bias": "none", "peft_version": "9", "unknown": [1]},
        {"target_modules": r".*self_attn\.(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj", "no_such_module"]},
        {"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ["k_proj"]},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 8}},
        {
            "r": 8,
            "lora_alpha": 16,
            "rank_pattern": {"q_proj": 4, "v_proj": 4},
            "alpha_pattern": {"_proj": 1, "self_attn.q_proj": 8, "v_proj": 8, "q_proj": 1},
        },
    ],
)
def test_what_changes_nothing_is_taken(base: BaseModules, config: dict[str, Any]) -> None:
    check(base, config)


def test_part_of_the_layers_is_taken_where_it_is_one_piece(base: BaseModules) -> None:
    """As layers_to_transform makes them, and as bases with extra layers for drafting do."""
    some = {
        name: t for name, t in lora_tensors().items() if ".layers.4." not in name and ".layers.0." not in name
    }
    check(base, tensors=some)
    check(base, {"layers_to_transform": [1, 3]}, {n: t for n, t in some.items() if ".layers.2." not in n})


# the config


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type", "only LORA"),
        ({"peft_type": None}, "peft_type", "only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type", "generate text"),
        ({"use_dora": True}, "use_dora", "merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "merge"),
        ({"bias": "lora_only"}, "bias", "biases"),
        ({"lora_bias": True}, "lora_bias", "bias"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices", "tokens"),
        ({"layer_replication": [[0, 2]]}, "layer_replication", "layers"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens", "activated"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters", "parameters"),
        ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config", "Megatron"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights", "path_initial_model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights", "path_initial_model"),
        ({"r": 0}, "r", "positive whole number"),
        ({"r": "4"}, "r", "positive whole number"),
        ({"r": True}, "r", "positive whole number"),
        ({"r": None}, "r", "positive whole number"),
        ({"lora_alpha": math.nan}, "lora_alpha", "finite"),
        ({"lora_alpha": math.inf}, "lora_alpha", "finite"),
        ({"lora_alpha": 0}, "lora_alpha", "positive"),
        ({"lora_alpha": -8}, "lora_alpha", "positive"),
        ({"lora_alpha": None}, "lora_alpha", "finite"),
        ({"lora_dropout": 1.5}, "lora_dropout", "0 to less than 1"),
        ({"use_rslora": "yes"}, "use_rslora", "true or false"),
        ({"target_modules": None}, "target_modules", "names"),
        ({"target_modules": [1]}, "target_modules", "names"),
        ({"rank_pattern": [1]}, "rank_pattern", "names"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj", "whole number"),
        ({"alpha_pattern": {"q_proj": math.nan}}, "alpha_pattern.q_proj", "finite"),
        ({"alpha_pattern": {"(a+)+$": 8}}, "alpha_pattern", "write the modules' names out"),
        ({"alpha_pattern": {"q_proj\\": 8}}, "alpha_pattern", "write the modules' names out"),
        ({"rank_pattern": {".*.*.*.*x": 8}}, "rank_pattern", "write the modules' names out"),
        ({"rank_pattern": {r"\w_proj": 8}}, "rank_pattern", "write the modules' names out"),
    ],
)
def test_a_config_that_cannot_be_served_names_its_field(
    base: BaseModules, change: dict[str, Any], field: str, message: str
) -> None:
    error = refused(base, change)
    assert error.param == f"adapter_config.{field}"
    assert message in error.message


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**CONFIG, "revision": ["\ud800"]}).encode(),
    ],
)
def test_a_config_that_is_no_object(base: BaseModules, text: bytes) -> None:
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        check_adapter(text, io.BytesIO(safetensors(lora_tensors())), base, 64)


def test_a_module_of_its_own_scaling_is_served_with_the_others(base: BaseModules, tmp_path: Path) -> None:
    checked = check(base, {"alpha_pattern": {"layers.0.self_attn.q_proj": 32}})
    assert (checked.config.rank, checked.config.alpha, checked.config.alpha_pattern) == (4, 32.0, {})
    folder = written(base, tmp_path / "a", {"alpha_pattern": {"layers.0.self_attn.q_proj": 32}}, None)
    with (folder / "adapter_model.safetensors").open("rb") as file:
        values = {t.name: next(iter(read_finite(file, t)))[:4] for t in read_tensors(file)}
    assert {values[A0], values[B0], values[A0.replace("q_proj", "v_proj")]} == {struct.pack("<f", 0.5)}
    assert values[B0.replace("q_proj", "v_proj")] == struct.pack("<f", 0.125)


def test_a_rank_the_engine_does_not_serve_names_the_option(base: BaseModules) -> None:
    check(base, {"r": 64}, lora_tensors(rank=64))
    error = refused(base, {"r": 65}, lora_tensors(rank=65))
    assert "--max-lora-rank" in error.message
    mixed = lora_tensors() | lora_tensors({Q0: (256, 256)}, rank=128)
    assert "rank 128" in refused(base, {"rank_pattern": {Q0: 128}, "alpha_pattern": {Q0: 256}}, mixed).message


# the weights


def changed(**tensors: Any) -> Tensors:
    """A valid adapter with A0 or B0 changed, or with further tensors; None leaves one out."""
    names = {"a": A0, "b": B0}
    found = lora_tensors()
    for key, tensor in tensors.items():
        found[names.get(key, key)] = tensor
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(b=None), f"{Q0} has lora_A but no lora_B"),
        (changed(a=None), f"{Q0} has lora_B but no lora_A"),
        (changed(a=None, b=None), f"{Q0} is among the target_modules"),
        (changed(a=zeros(4, 128)), f"{Q0} has lora_A [4, 128]"),
        (changed(b=zeros(512, 4)), "in tiny it has [256, 256]"),
        (changed(b=zeros(128, 4)), "trained on another base"),
        (changed(a=zeros(8, 256)), "lora_A of rank 8"),
        (changed(a=zeros(8, 256), b=zeros(256, 8)), "has rank 8 in its weights and 4 in adapter_config.json"),
        (changed(a=zeros(1024)), "no matrix"),
        (changed(a=zeros(0, 256), b=zeros(256, 0)), "no matrix"),
        (lora_tensors({"model.layers.9.self_attn.q_proj": (256, 256)}), "has no module model.layers.9"),
        (lora_tensors({"model.blocks.0.self_attn.q_proj": (256, 256)}), "5 model.layers"),
        (lora_tensors({"transformer.h.0.attn.c_attn": (256, 256)}), "has no module transformer.h.0"),
        (lora_tensors({"model.norm": (256, 256)}), "in tiny it has [256]"),
        ({}, "no LoRA weights"),
        (changed(**{"base_model.model.lm_head.weight": zeros(2048, 256)}), "a whole weight"),
        (changed(**{f"base_model.model.{Q0}.lora_magnitude_vector": zeros(256)}), "DoRA"),
        (
            changed(**{f"base_model.model.{Q0}.lora_A.default.weight": zeros(4, 256)}),
            "twice, under two names",
        ),
        (changed(**{"layers.0.wq.lora_down": zeros(4, 256)}), "no LoRA weight that is known"),
        (changed(a=("F16", (4, 256), b"\0" * 2047)), "2047 bytes"),
        (changed(a=("F64", (4, 256), b"\0" * 8192)), "F64"),
        (changed(a=("I8", (4, 256), b"\0" * 1024)), "save it as F32"),
    ],
)
def test_weights_that_do_not_fit_say_where(base: BaseModules, tensors: Tensors, message: str) -> None:
    assert message in refused(base, tensors=tensors).message


def test_an_adapter_with_a_hole_is_incomplete(base: BaseModules) -> None:
    holed = {name: t for name, t in lora_tensors().items() if ".layers.2.self_attn.v_proj" not in name}
    error = refused(base, tensors=holed)
    assert "model.layers.2.self_attn.v_proj is among the target_modules" in error.message
    assert "(1 such modules)" in error.message


@pytest.mark.parametrize(
    "content", [pickle.dumps({"w": [1.0]}), b"PK\x03\x04" + b"\0" * 200, pickle.dumps([1], 2)]
)
def test_pickled_weights_are_refused_unread(base: BaseModules, content: bytes) -> None:
    error = refused(base, weights=content)
    assert error.code == "pickled_weights"
    assert "save_pretrained" in error.message


def test_a_header_may_have_the_length_of_a_pickles_beginning(base: BaseModules) -> None:
    """0x280 bytes: the file begins like a pickle of protocol 2 and is none."""
    tensors = lora_tensors({Q0: (256, 256)})
    bare = safetensors(tensors, format="pt")
    (length,) = struct.unpack("<Q", bare[:8])
    padded = safetensors(tensors, format="pt" + "x" * (0x280 - length))
    assert padded.startswith(b"\x80\x02")
    check(base, {"layers_to_transform": [0], "target_modules": ["q_proj"]}, weights=padded)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: b"", "no safetensors"),
        (lambda c: c[:7], "no safetensors"),
        (lambda c: c[:300], "cut off"),
        (lambda c: c[:-1], "cut off"),
        (lambda c: c + b"x", "no tensor"),
        (lambda c: struct.pack("<Q", 2**40) + c[8:], "cut off"),
        (lambda c: c[:8] + b"[" * 100_000 + c[8:], "header"),
        (lambda c: struct.pack("<Q", 4) + b"[[]]", "not a JSON object"),
        (lambda c: struct.pack("<Q", 13) + b'{"a":1,"a":2}', "twice"),
        (lambda c: struct.pack("<Q", 9) + b'{"a": 1}\n', "wrongly"),
        *(
            (lambda c, tensor=tensor: struct.pack("<Q", len(tensor)) + tensor + b"1234", "wrongly")
            for tensor in (
                b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
                b'{"a":{"dtype":{},"shape":[1],"data_offsets":[0,4]}}',
                b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            )
        ),
    ],
)
def test_a_damaged_file_is_refused(base: BaseModules, damage: Any, message: str) -> None:
    assert message in refused(base, weights=damage(safetensors(lora_tensors()))).message


def test_a_header_of_any_size_is_not_read(base: BaseModules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.registry.safetensors_file.LARGEST_HEADER", 100)
    assert "100 are the most" in refused(base).message


@pytest.mark.parametrize(
    "shape",
    [[2] * 100_000, [10**4000] * 500, [-1, -4096], [2**50, 0], [1.0], [True, 4096], "4096", {"a": 1}, None],
    ids=lambda shape: str(shape)[:20],
)
def test_shapes_that_lie_are_refused_at_once(base: BaseModules, shape: Any) -> None:
    """A product of giant numbers takes minutes, and so does writing it out."""
    header = json.dumps({Q0: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4096]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4096)
    began = time.perf_counter()
    error = refused(base, weights=content)
    assert time.perf_counter() - began < 1
    assert "wrongly" in error.message
    assert len(error.message) < 1000


def test_a_name_of_any_length_is_not_taken_nor_quoted(base: BaseModules) -> None:
    message = refused(base, tensors={"m" * 2000: ("F32", (1, 1), bytes(4))}).message
    assert "wrongly" in message
    assert len(message) < 1000


def test_many_patterns_for_long_names_take_no_time(base: BaseModules) -> None:
    """As regular expressions with wildcards, six kilobytes of them took 54 s."""
    patterns = {f"{'.'.join('a' * 100)}{n}": 8 for n in range(2000)}
    began = time.perf_counter()
    check(base, {"rank_pattern": patterns})
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("offsets", [[0, 8192], [-4096, 0], [4096, 0], ["0", 4096], [0.0, 4096.0], [0], None])
def test_offsets_that_lie_are_refused(base: BaseModules, offsets: Any) -> None:
    content = safetensors(lora_tensors({Q0: (256, 256)}))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[A0]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    refused(base, weights=struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_tensors_that_overlap_are_refused(base: BaseModules) -> None:
    content = safetensors(changed(a=zeros(4, 256), b=zeros(256, 4)))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[B0]["data_offsets"] = header[A0]["data_offsets"]
    text = json.dumps(header).encode()
    assert (
        "begins at byte"
        in refused(base, weights=struct.pack("<Q", len(text)) + text + content[8 + length :]).message
    )


# numbers


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 511, 1023])
def test_one_number_that_is_none_is_found(
    base: BaseModules, tmp_path: Path, dtype: str, bad: float, at: int
) -> None:
    _, shape, content = zeros(4, 256, dtype=dtype, value=1.0)
    width = len(content) // 1024
    number = zeros(1, dtype=dtype, value=bad)[2]
    tensors = changed(a=(dtype, shape, content[: at * width] + number + content[(at + 1) * width :]))
    files = adapter_files(tensors=tensors)
    weights = io.BytesIO(files["adapter_model.safetensors"])
    with pytest.raises(InvalidAdapter, match=f"{A0} has numbers that are NaN or infinite"):
        check_adapter(files["adapter_config.json"], weights, base, 64).write(weights, tmp_path)
    (tmp_path / "w").write_bytes(files["adapter_model.safetensors"])
    with pytest.raises(InvalidAdapter, match="NaN"):
        check_numbers(tmp_path / "w")


_PACKED = {"F32": ("<I", 32), "F16": ("<H", 16), "BF16": ("<H", 16)}


_EDGES = {
    "F32": (0x7F7FFFFF, 0xFF7FFFFF, 0x7F000000, 0x00000001, 0x807FFFFF),
    "F16": (0x7BFF, 0xFBFF, 0x7800, 0x0001, 0x83FF),
    "BF16": (0x7F7F, 0xFF7F, 0x7F00, 0x0001, 0x807F),
}
"""The largest finite numbers, and some of the smallest."""


@pytest.mark.parametrize("dtype", sorted(_PACKED))
def test_the_largest_number_is_finite(dtype: str) -> None:
    content = b"".join(struct.pack(_PACKED[dtype][0], pattern) for pattern in _EDGES[dtype])
    file = io.BytesIO(safetensors({"t": (dtype, (len(_EDGES[dtype]),), content)}))
    assert b"".join(read_finite(file, read_tensors(file)[0])) == content


@given(dtype=st.sampled_from(sorted(_PACKED)), data=st.data())
def test_numbers_are_judged_as_their_format_says(dtype: str, data: Any) -> None:
    """Any bit patterns, against what struct makes of them."""
    form, bits = _PACKED[dtype]
    patterns = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40))
    content = b"".join(struct.pack(form, pattern) for pattern in patterns)
    if dtype == "BF16":
        numbers = [struct.unpack("<f", struct.pack("<I", pattern << 16))[0] for pattern in patterns]
    else:
        numbers = [number for (number,) in struct.iter_unpack({"F32": "<f", "F16": "<e"}[dtype], content)]
    file = io.BytesIO(safetensors({"t": (dtype, (len(patterns),), content)}))
    (tensor,) = read_tensors(file)
    try:
        assert b"".join(read_finite(file, tensor)) == content
        finite = True
    except BadTensors:
        finite = False
    assert finite == all(map(math.isfinite, numbers))


@given(content=st.binary(max_size=300))
def test_no_bytes_confuse_the_reader(content: bytes) -> None:
    try:
        read_tensors(io.BytesIO(content))
    except BadTensors:
        pass


@given(data=st.data())
def test_no_header_confuses_the_reader(data: Any) -> None:
    values = st.recursive(
        st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "F32", "a"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
    text = json.dumps(data.draw(values)).encode()
    try:
        read_tensors(io.BytesIO(struct.pack("<Q", len(text)) + text + b"\0" * 16))
    except BadTensors:
        pass


# the stored form


def test_the_same_adapter_is_the_same_artifact(base: BaseModules, tmp_path: Path) -> None:
    """Whatever order, metadata and irrelevant fields it comes with."""
    reference = adapter_sha256(written(base, tmp_path / "a", None, None))
    tensors = lora_tensors()
    shuffled = dict(sorted(tensors.items(), reverse=True))
    config = {
        "target_modules": ["v_proj", "q_proj", "v_proj"], "lora_alpha": 8, "lora_dropout": 0, "peft_version": "9",
        "task_type": None, "modules_to_save": [], "base_model_name_or_path": "x", "init_lora_weights": "gaussian",
    }  # fmt: skip
    other = written(base, tmp_path / "b", config, shuffled)
    assert adapter_sha256(other) == reference
    assert (other / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "a" / "adapter_model.safetensors"
    ).read_bytes()
    sparse = {key: CONFIG[key] for key in ("peft_type", "r", "lora_alpha", "target_modules")}
    files = {"adapter_config.json": json.dumps(sparse).encode()}
    weights = io.BytesIO(safetensors(tensors, made_by="hand"))
    (tmp_path / "c").mkdir()
    check_adapter(files["adapter_config.json"], weights, base, 64).write(weights, tmp_path / "c")
    assert adapter_sha256(tmp_path / "c") == reference


def test_the_file_is_what_peft_writes(tmp_path: Path) -> None:
    """So that an adapter that was trained here and is uploaded again is the same artifact."""
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save
    tensors = lora_tensors() | lora_tensors({"model.é": (4, 4)}, dtype="F16") | {"b": zeros(3, dtype="BF16")}
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    theirs = save(
        {
            name: torch.frombuffer(bytearray(content), dtype=types[dtype]).reshape(shape)
            for name, (dtype, shape, content) in tensors.items()
        },
        {"format": "pt"},
    )
    source, ours = io.BytesIO(safetensors(tensors)), io.BytesIO()
    write_tensors(ours, source, read_tensors(source))
    assert ours.getvalue() == theirs


@pytest.mark.parametrize(
    ("hint", "kept"),
    [
        ("org/llama", "org/llama"),
        ("/home/somebody/llama", "tiny"),
        ("./llama", "tiny"),
        (None, "tiny"),
        (5, "tiny"),
    ],
)
def test_the_base_is_named_as_others_can_find_it(
    base: BaseModules, tmp_path: Path, hint: object, kept: str
) -> None:
    folder = written(base, tmp_path / "a", {"base_model_name_or_path": hint}, None)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == kept


def test_a_pattern_of_modules_becomes_their_names(base: BaseModules, tmp_path: Path) -> None:
    folder = written(base, tmp_path / "a", {"target_modules": ".*proj"}, lora_tensors({Q0: (256, 256)}))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == [Q0]


# bases of other shapes


def model(folder: Path, tensors: Tensors, **config: Any) -> BaseModules:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return BaseModules("other", folder)


LINEAR = zeros(8, 8, dtype="BF16")
MODULES = {"model.layers.0.self_attn.q_proj": (8, 8)}
OTHER = {"target_modules": ["q_proj"]}


def test_a_quantized_base_is_known_by_its_names(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    for at, tensors in enumerate(
        (
            {f"{name}.qweight": ("I32", (8, 1), b"\0" * 32), f"{name}.scales": zeros(1, 8)},
            {f"{name}.weight": ("U8", (32, 1), b"\0" * 32)},
            {f"{name}.weight_packed": ("I32", (8, 1), b"\0" * 32)},
        )
    ):
        base = model(tmp_path / str(at), tensors)
        check(base, OTHER, lora_tensors(MODULES))
        assert "no module" in refused(base, OTHER, lora_tensors({name.replace("q", "k"): (8, 8)})).message
    eight = model(tmp_path / "fp8", {f"{name}.weight": ("F8_E4M3", (8, 8), b"\0" * 64)})
    check(eight, OTHER, lora_tensors(MODULES))
    refused(eight, OTHER, lora_tensors({"model.layers.0.self_attn.q_proj": (8, 9)}))


def test_a_multimodal_bases_names_differ_between_its_files_and_its_code(tmp_path: Path) -> None:
    tensors = {
        "language_model.model.layers.0.self_attn.q_proj.weight": LINEAR,
        "vision_tower.layers.0.self_attn.q_proj.weight": zeros(4, 4),
    }
    base = model(tmp_path / "a", tensors, text_config={})
    for name in ("model.language_model.layers.0", "model.layers.0", "language_model.model.layers.0"):
        check(base, OTHER, lora_tensors({f"{name}.self_attn.q_proj": (8, 8)}))
    refused(base, OTHER, lora_tensors({"model.layers.0.self_attn.q_proj": (4, 4)}))
    text_only = model(tmp_path / "b", {"model.layers.0.self_attn.q_proj.weight": LINEAR})
    refused(text_only, OTHER, lora_tensors({"model.language_model.layers.0.self_attn.q_proj": (8, 8)}))


def test_files_may_leave_out_the_models_own_prefix(tmp_path: Path) -> None:
    base = model(tmp_path / "a", {"h.0.attn.weight": LINEAR})
    check(base, {"target_modules": ["attn"]}, lora_tensors({"transformer.h.0.attn": (8, 8)}))


def test_experts_may_be_left_out(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.gate_proj.weight": LINEAR,
        "model.layers.1.mlp.gate_proj.weight": LINEAR,
        "model.layers.1.mlp.experts.0.gate_proj.weight": LINEAR,
    }
    base = model(tmp_path / "a", tensors)
    modules = {f"model.layers.{n}.mlp.gate_proj": (8, 8) for n in range(2)}
    check(base, {"target_modules": ["gate_proj"]}, lora_tensors(modules))
    experts = {**modules, "model.layers.1.mlp.experts.0.gate_proj": (8, 8)}
    check(base, {"target_modules": ["gate_proj"]}, lora_tensors(experts))
