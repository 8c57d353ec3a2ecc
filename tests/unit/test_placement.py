"""Where deployments are placed, and with how much of a device's memory: arithmetic with made-up devices."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunewright.config import Settings
from tunewright.engine.command import (
    EngineOptions,
    engine_command,
    engine_environment,
    short_temporary_folder,
)
from tunewright.engine.placement import (
    MOST_OF_A_GPU,
    PROCESS_BYTES,
    needed_on_cpu,
    options_of_bases,
    place,
    still_fits,
)
from tunewright.errors import InvalidRequest
from tunewright.registry.bases import BaseInfo

MIB, GIB = 2**20, 2**30
TWO = ["cuda:0", "cuda:1"]


def settings(**options: Any) -> Settings:
    return Settings(base=["a=/x"], **options)


def placed(
    asked: dict[str, Any],
    others: dict[str, EngineOptions] | None = None,
    devices: list[str] = TWO,
    *,
    weights: int | None = 10 * MIB,
    free: int = 64 * GIB,
    **options: Any,
) -> EngineOptions:
    chosen = settings(**options)
    beside = options_of_bases(chosen, devices) if others is None else others
    return place(chosen.serving, devices, "new", asked, beside, weights=weights, free_memory=free)


def on(device: str, share: float) -> EngineOptions:
    return EngineOptions(device, gpu_memory_utilization=share)


def test_bases_share_what_serving_has_of_each_gpu() -> None:
    three = Settings(base=["a=/x", "b=/y", "c=/z"], gpu_memory_utilization=0.6)
    found = options_of_bases(three, TWO)
    assert {name: (o.device, o.gpu_memory_utilization) for name, o in found.items()} == {
        "a": ("cuda:0", 0.3),
        "b": ("cuda:1", 0.6),
        "c": ("cuda:0", 0.3),
    }
    assert found["a"].kv_cache_memory is None
    assert not found["a"].enforce_eager
    cpu = options_of_bases(three, ["cpu"])["b"]
    assert (cpu.gpu_memory_utilization, cpu.kv_cache_memory, cpu.enforce_eager) == (None, 512 * MIB, True)


def test_a_deployment_goes_where_most_is_left() -> None:
    new = placed({})
    assert (new.device, new.gpu_memory_utilization) == ("cuda:1", 0.3)
    assert placed({}, {"a": on("cuda:0", 0.45), "b": on("cuda:1", 0.5)}).device == "cuda:0"
    assert placed({"device": "cuda:0"}).device == "cuda:0"


def test_left_out_a_share_is_what_is_left_and_a_third_at_most() -> None:
    assert placed({}, {}).gpu_memory_utilization == 0.3
    assert placed({}, {"a": on("cuda:0", 0.8)}, ["cuda:0"]).gpu_memory_utilization == pytest.approx(0.15)


def test_a_share_that_is_asked_for_fits_to_the_last_bit() -> None:
    others = {"a": on("cuda:0", 0.45), "b": on("cuda:0", 0.3)}
    assert placed({"gpu_memory_utilization": 0.2}, others, ["cuda:0"]).gpu_memory_utilization == 0.2
    with pytest.raises(InvalidRequest, match=r"a has 0.45, b has 0.3, and of the 0.95 for all engines 0.2"):
        placed({"gpu_memory_utilization": 0.21}, others, ["cuda:0"])


def test_a_refusal_says_what_would_fit() -> None:
    others = {"a": on("cuda:0", 0.8), "b": on("cuda:1", 0.45)}
    with pytest.raises(InvalidRequest) as refused:
        placed({"device": "cuda:0", "gpu_memory_utilization": 0.4}, others)
    assert (refused.value.code, refused.value.param) == ("does_not_fit", "engine.gpu_memory_utilization")
    assert "A share of 0.4 of cuda:0 does not fit" in refused.value.message
    assert "Ask for 0.15 or less" in refused.value.message
    assert "cuda:1 has 0.5 left" in refused.value.message


def test_on_a_full_gpu_nothing_is_placed() -> None:
    with pytest.raises(InvalidRequest, match=r"0 is left. Delete a deployment") as refused:
        placed({}, {"a": on("cuda:0", MOST_OF_A_GPU)}, ["cuda:0"])
    assert "Ask for" not in refused.value.message
    with pytest.raises(InvalidRequest, match="0 is left"):
        placed({}, None, ["cuda:0"], gpu_memory_utilization=0.98)


@pytest.mark.parametrize(
    ("asked", "devices", "param"),
    [
        ({"device": "cuda:7"}, TWO, "engine.device"),
        ({"device": "cpu"}, TWO, "engine.device"),
        ({"kv_cache_memory": GIB}, TWO, "engine.kv_cache_memory"),
        ({"gpu_memory_utilization": 0.1}, ["cpu"], "engine.gpu_memory_utilization"),
    ],
)
def test_what_the_device_does_not_have_is_refused(
    asked: dict[str, Any], devices: list[str], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        placed(asked, None, devices)
    assert refused.value.param == param


def test_on_the_cpu_weights_cache_and_process_must_fit_what_is_free() -> None:
    fits = placed({"kv_cache_memory": GIB}, None, ["cpu"], weights=GIB, free=2 * GIB + PROCESS_BYTES)
    assert needed_on_cpu(fits) == 2 * GIB + PROCESS_BYTES
    with pytest.raises(InvalidRequest) as refused:
        placed({"kv_cache_memory": GIB}, None, ["cpu"], weights=GIB, free=2 * GIB + PROCESS_BYTES - 1)
    assert refused.value.code == "does_not_fit"
    assert "1.00 GiB for weights, 1.00 GiB for the KV cache" in refused.value.message
    assert "a kv_cache_memory of 1023MiB or less" in refused.value.message
    with pytest.raises(InvalidRequest, match="a machine with more memory"):
        placed({}, None, ["cpu"], weights=8 * GIB, free=2 * GIB)


def test_what_is_not_asked_for_is_the_services() -> None:
    new = placed({"max_loras": 2, "max_model_len": 128}, max_lora_rank=32, max_cpu_loras=5)
    assert (new.max_loras, new.max_cpu_loras, new.max_lora_rank, new.max_model_len) == (2, 5, 32, 128)
    assert new.weights_bytes == 10 * MIB


def test_a_deployment_stays_where_it_is_while_that_is_there() -> None:
    mine = on("cuda:1", 0.4)
    assert still_fits(mine, TWO, {"a": on("cuda:1", 0.55), "b": on("cuda:0", 0.9)})
    assert not still_fits(mine, TWO, {"a": on("cuda:1", 0.6)})
    assert not still_fits(mine, ["cuda:0"], {})
    assert still_fits(EngineOptions("cpu", kv_cache_memory=GIB), ["cpu"], {"a": EngineOptions("cpu")})


# the command line

INFO = BaseInfo("a", Path("/x"), "f" * 64, 1024, None, None)


def command(options: EngineOptions, name: str = "a", **given: Any) -> list[str]:
    info = BaseInfo(name, Path("/x"), "f" * 64, 1024, None, None)
    return engine_command(settings(**given), info, Path("/s"), options, trust_remote_code=False)


def value(arguments: list[str], option: str) -> str:
    """The last one wins."""
    return arguments[len(arguments) - arguments[::-1].index(option)]


def test_every_option_reaches_vllm() -> None:
    options = EngineOptions(
        "cuda:0", gpu_memory_utilization=0.25, max_loras=2, max_cpu_loras=9, max_lora_rank=32, max_model_len=512,
        max_num_seqs=7, enforce_eager=True, dtype="float16",
    )  # fmt: skip
    given = command(options)
    wanted = {
        "--gpu-memory-utilization": "0.250", "--max-loras": "2", "--max-cpu-loras": "9", "--max-lora-rank": "32",
        "--max-model-len": "512", "--max-num-seqs": "7", "--dtype": "float16", "--model": "/x",
    }  # fmt: skip
    assert {option: value(given, option) for option in wanted} == wanted
    assert {"--enforce-eager", "--enable-lora"} <= set(given)
    assert not {"--trust-remote-code", "--kv-cache-memory-bytes"} & set(given)
    assert value(command(EngineOptions("cpu", kv_cache_memory=5)), "--kv-cache-memory-bytes") == "5"


def test_media_are_fetched_from_the_hosts_that_the_operator_allows_alone() -> None:
    given = command(EngineOptions("cpu"))
    assert value(given, "--allowed-media-domains") == "none.invalid", "vLLM takes an empty list for all hosts"
    given = command(EngineOptions("cpu"), media_domain=["a.example", "b.example"])
    at = given.index("--allowed-media-domains")
    assert given[at + 1 : at + 3] == ["a.example", "b.example"]
    assert given[at + 3].startswith("--")
    assert engine_environment("cpu")["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_the_folder_of_vllms_sockets_is_short_whatever_the_folder_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert short_temporary_folder() == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert short_temporary_folder() == Path("/var/tmp")


def test_without_adapters_none_are_offered() -> None:
    given = command(EngineOptions("cuda:0", enable_lora=False))
    assert not [argument for argument in given if "lora" in argument]


def test_the_operators_arguments_win_over_ours_but_not_over_a_deployments() -> None:
    options = EngineOptions("cuda:0", gpu_memory_utilization=0.25)
    theirs = "--gpu-memory-utilization 0.9"
    assert value(command(options, vllm_arg=theirs), "--gpu-memory-utilization") == "0.9"
    assert value(command(options, "new", vllm_arg=theirs), "--gpu-memory-utilization") == "0.250"
    assert "--seed" in command(options, "new", vllm_arg="--seed 1")


FOUR = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_bases_are_split_over_groups_of_gpus() -> None:
    split = Settings(
        base=["a=/x", "b=/y", "c=/z"], gpu_memory_utilization=0.6, tensor_parallel_size=2, device="cuda"
    )
    found = options_of_bases(split, FOUR)
    assert {name: (o.devices, o.gpu_memory_utilization) for name, o in found.items()} == {
        "a": (("cuda:0", "cuda:1"), 0.3),
        "b": (("cuda:2", "cuda:3"), 0.6),
        "c": (("cuda:0", "cuda:1"), 0.3),
    }
    assert set(options_of_bases(split, FOUR[:3])) == {"a", "b", "c"}, "the third GPU is left for jobs"
    assert {o.devices for o in options_of_bases(split, FOUR[:3]).values()} == {("cuda:0", "cuda:1")}


@pytest.mark.parametrize(
    ("devices", "why"),
    [(TWO, "this machine has 2"), (["cpu"], "this machine has none, and the CPU is one device")],
)
def test_bases_are_not_split_over_more_gpus_than_there_are(devices: list[str], why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        options_of_bases(settings(tensor_parallel_size=3), devices)
    assert str(refused.value) == f"--tensor-parallel-size 3: {why}."
    with pytest.raises(InvalidRequest, match=why) as refused:
        placed({"tensor_parallel_size": 3}, {}, devices)
    assert refused.value.param == "engine.tensor_parallel_size"


@pytest.mark.parametrize("argument", ["--tensor-parallel-size=2", "--tensor-parallel-size 2", "-tp 2"])
def test_the_service_has_to_know_how_many_gpus_an_engine_has(argument: str) -> None:
    with pytest.raises(InvalidRequest, match="by --tensor-parallel-size of the service"):
        options_of_bases(settings(vllm_arg=argument), TWO)


def test_a_deployment_is_split_over_the_gpus_with_the_most_memory_left() -> None:
    taken = {"a": on("cuda:0", 0.5), "b": EngineOptions("cuda:2", ["cuda:3"], gpu_memory_utilization=0.2)}
    new = placed({"tensor_parallel_size": 2}, taken, FOUR)
    assert (new.devices, new.gpu_memory_utilization) == (("cuda:1", "cuda:2"), 0.3)
    named = placed({"tensor_parallel_size": 2, "device": "cuda:0"}, taken, FOUR)
    assert (named.devices, named.gpu_memory_utilization) == (("cuda:0", "cuda:1"), 0.3)
    assert placed({"device": "cuda:0"}, taken, FOUR, tensor_parallel_size=2).devices == ("cuda:0",)
    assert placed({}, taken, FOUR, tensor_parallel_size=4).devices == (*FOUR[1:], "cuda:0")


def test_each_gpu_of_a_split_deployment_needs_room() -> None:
    taken = {"a": on("cuda:0", 0.9), "b": EngineOptions("cuda:2", ["cuda:3"], gpu_memory_utilization=0.9)}
    with pytest.raises(InvalidRequest, match=r"0\.05 is left") as refused:
        placed({"tensor_parallel_size": 2, "gpu_memory_utilization": 0.3}, taken, FOUR)
    assert refused.value.code == "does_not_fit"
    split = EngineOptions("cuda:1", ["cuda:0"], gpu_memory_utilization=0.3)
    assert not still_fits(split, FOUR, taken)
    assert not still_fits(split, ["cuda:1"], {})
    assert still_fits(split, FOUR, {})


def test_a_split_engine_sees_its_gpus_and_splits_its_model() -> None:
    assert engine_environment("cuda:1", "cuda:3")["CUDA_VISIBLE_DEVICES"] == "1,3"
    split = command(EngineOptions("cuda:1", ["cuda:3"], gpu_memory_utilization=0.3, max_loras=4))
    assert value(split, "--tensor-parallel-size") == "2"
    assert "--tensor-parallel-size" not in command(replace(on("cuda:1", 0.3), max_loras=4))
