"""How many adapters an engine on a GPU mixes in one batch: arithmetic with real shapes and made-up cards."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tunewright.config import Settings
from tunewright.engine import slots as module
from tunewright.engine.command import EngineOptions, engine_command
from tunewright.engine.gpus import NoDriver
from tunewright.engine.placement import options_of_bases, place
from tunewright.engine.slots import (
    BaseCost,
    Slots,
    choose_slots,
    cost_of,
    read_cost,
    vllm_specializes,
    with_operators,
    with_slots,
)
from tunewright.plan.shape import ModelShape, shape_of
from tunewright.registry.bases import BaseInfo

MIB, GIB = 2**20, 2**30
H200, A100, L4 = 143_771 * MIB, 81_920 * MIB, 23_034 * MIB
SIZES = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28}
QWEN = {**SIZES, "intermediate_size": 18944, "vocab_size": 152_064, "max_position_embeddings": 32_768}


def qwen2_7b(*, packed: bool = False) -> ModelShape:
    """The shape of Qwen2-7B; `packed`: quantized with AWQ."""
    linear = {
        "self_attn.q_proj": (3584, 3584), "self_attn.k_proj": (512, 3584), "self_attn.v_proj": (512, 3584),
        "self_attn.o_proj": (3584, 3584), "mlp.gate_proj": (18944, 3584), "mlp.up_proj": (18944, 3584),
        "mlp.down_proj": (3584, 18944),
    }  # fmt: skip
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (152_064, 3584)), "lm_head.weight": ("BF16", (152_064, 3584)),
    }  # fmt: skip
    for layer in range(28):
        for name, (outputs, inputs) in linear.items():
            whole = f"model.layers.{layer}.{name}"
            if packed:
                tensors[f"{whole}.qweight"] = ("I32", (inputs, outputs // 8))
            else:
                tensors[f"{whole}.weight"] = ("BF16", (outputs, inputs))
    return shape_of(QWEN, tensors)


SEVEN = cost_of(qwen2_7b())


def options(share: float = 0.45, **changes: Any) -> EngineOptions:
    return EngineOptions("cuda:0", gpu_memory_utilization=share, **{"max_loras": None, **changes})


def chosen(memory: int, share: float = 0.45, cost: BaseCost | None = SEVEN, **changes: Any) -> Slots:
    return choose_slots(options(share, **changes), cost, memory)


def left(found: Slots, memory: int, share: float) -> int:
    """Bytes of the engine's memory that are left for the KV cache."""
    taken = SEVEN.weights + module.WORKSPACE + found.graphs + found.count * SEVEN.slot(options())
    return int(share * memory) - taken


def test_a_slot_is_as_large_as_vllms() -> None:
    """vLLM 0.26 loads this model in 15.50 GiB with 4 slots of rank 64, in 14.89 GiB with 8 of rank 16."""
    assert SEVEN.slot(options()) == 322_961_408
    four, eight = 4 * SEVEN.slot(options()), 8 * SEVEN.slot(options(max_lora_rank=16))
    assert (four - eight) / GIB == pytest.approx(15.50 - 14.89, abs=0.01)


def test_graphs_are_as_large_as_those_that_were_measured() -> None:
    """With vLLM's own sizes of a batch an engine with 64 slots took 29,272 MiB with them, and 26,880 MiB without; all
    graphs were 3.54 GiB then, and 1.95 GiB with ours."""
    measured = (29_272 - 26_880) * 1.95 / 3.54
    assert SEVEN.graphs(64, options()) / MIB == pytest.approx(measured, rel=0.01)
    assert SEVEN.graphs(64, options(enforce_eager=True)) == 0


@pytest.mark.parametrize(
    ("memory", "share", "rank", "count", "has_graphs"),
    [
        (L4, 0.95, 64, 4, False),
        (L4, 0.95, 16, 9, False),
        (A100, 0.45, 64, 23, True),
        (A100, 0.9, 64, 64, True),
        (H200, 0.45, 64, 64, True),
        (H200, 0.45, 16, 64, True),
        (H200, 0.3, 64, 33, True),
    ],
)
def test_slots_grow_with_the_memory_that_an_engine_has(
    memory: int, share: float, rank: int, count: int, has_graphs: bool
) -> None:
    found = chosen(memory, share, max_lora_rank=rank)
    assert (found.count, found.has_graphs, found.graphs > 0) == (count, has_graphs, has_graphs)


@pytest.mark.parametrize(("memory", "share"), [(L4, 0.95), (A100, 0.45), (H200, 0.3), (H200, 0.45)])
def test_one_request_of_the_longest_length_still_fits(memory: int, share: float) -> None:
    """vLLM does not start where it does not."""
    assert left(chosen(memory, share), memory, share) >= SEVEN.token * SEVEN.context


def test_a_longer_request_leaves_less_for_slots_and_four_are_always_there() -> None:
    counts = [chosen(A100, max_model_len=length).count for length in (2048, 32_768, 131_072, 2**20)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0] > counts[1], counts[-1]) == (True, 4)


@pytest.mark.parametrize(
    ("cost", "memory", "what"), [(None, H200, "the base's shape"), (SEVEN, 0, "the GPU's memory")]
)
def test_where_the_memory_cannot_be_planned_there_are_four(
    cost: BaseCost | None, memory: int, what: str
) -> None:
    found = chosen(memory, cost=cost)
    assert (found.count, found.has_graphs) == (4, False)
    assert f"{what} is not known" in found.why


def test_what_is_set_holds() -> None:
    assert chosen(H200, max_loras=2).count == 2
    assert chosen(L4, 0.95, max_loras=100).count == 100
    assert "as was set" in chosen(H200, max_loras=2).why
    assert chosen(H200, cost=None, max_loras=100).count == 100


def test_never_more_slots_are_chosen_than_adapters_may_be_held() -> None:
    for most in (1, 3, 10):
        found = options(max_cpu_loras=most)
        assert choose_slots(found, SEVEN, H200).count == most
        assert choose_slots(found, None, 0).count == min(most, 4)
    assert options(max_loras=100).max_adapters == 100


def test_one_slot_needs_no_graphs_by_number_and_more_have_them_where_they_fit() -> None:
    assert not chosen(H200, max_loras=1).has_graphs
    assert chosen(H200, max_loras=2).has_graphs
    assert not chosen(L4, 0.95, max_loras=4).has_graphs


def test_the_reason_names_numbers_and_sizes() -> None:
    assert "23 slots for adapters of 323 MB (rank 64) and 0.99 GB of CUDA graphs" in chosen(A100).why
    assert "of the engine's 38.7 GB are for them" in chosen(A100).why
    assert "more than 64 are never chosen" in chosen(H200).why
    assert "the fewest" in chosen(L4, 0.95).why


def test_a_quantized_base_has_adapters_as_large_as_before() -> None:
    packed = cost_of(qwen2_7b(packed=True))
    assert packed.slot(options()) == SEVEN.slot(options())
    assert packed.weights < SEVEN.weights / 2


def test_the_cost_is_read_from_the_files_of_a_base(tmp_path: Path) -> None:
    base = Settings().models.bases[0].path
    assert base is not None
    found = read_cost(base)
    config = json.loads((base / "config.json").read_text())
    assert found is not None
    assert (found.layers, found.context) == (config["num_hidden_layers"], config["max_position_embeddings"])
    assert found.adapter > 0
    assert read_cost(tmp_path) is None


# from the options to the command line


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_memory", lambda device: ("NVIDIA H200", H200))


def started(
    given: EngineOptions, *vllm_args: str, name: str = "a", cost: BaseCost | None = SEVEN
) -> list[str]:
    """The command of an engine; that of a deployment, where it is not named "a"."""
    settings = Settings(base=["a=/x"], vllm_arg=" ".join(vllm_args))
    ready, _ = with_slots(given, cost, settings.serving.vllm_args, is_deployment=name != "a")
    info = BaseInfo(name, Path("/x"), "f" * 64, 1024, None, None)
    return engine_command(settings, info, Path("/s"), ready, trust_remote_code=False)


def last(command: list[str], option: str) -> str:
    return command[len(command) - command[::-1].index(option)]


def auto(**given: Any) -> EngineOptions:
    return options_of_bases(Settings(base=["a=/x"], **given), ["cuda:0"])["a"]


@pytest.mark.usefixtures("on_h200")
def test_on_a_gpu_a_base_starts_with_as_many_as_fit_and_its_graphs_are_in_its_share() -> None:
    command = started(auto())
    assert last(command, "--max-loras") == "64"
    assert int(last(command, "--max-cpu-loras")) >= 64
    assert "--specialize-active-lora" in command
    graphs = SEVEN.graphs(64, options()) / H200
    assert float(last(command, "--gpu-memory-utilization")) == pytest.approx(0.45 - graphs, abs=0.001)


def sizes(command: list[str]) -> list[int]:
    """The sizes of a batch that have CUDA graphs."""
    first = command.index("--cudagraph-capture-sizes") + 1
    rest = command[first:]
    return [int(word) for word in rest[: next(i for i, word in enumerate(rest) if word.startswith("--"))]]


@pytest.mark.usefixtures("on_h200")
def test_graphs_by_the_number_of_adapters_have_fewer_sizes_than_vllm_would_capture() -> None:
    found = sizes(started(auto()))
    assert (found[:4], found[-1], len(found)) == ([1, 2, 4, 8], 512, 23)
    assert all(b <= 1.25 * a or b - a <= 8 for a, b in pairwise(found)), "little is padded"
    assert sizes(started(replace(auto(), max_num_seqs=48)))[-1] == 96, "no batch of one token each is larger"
    assert "--cudagraph-capture-sizes" not in started(auto(max_loras=1)), "vLLM's own are few"


@pytest.mark.usefixtures("on_h200")
@pytest.mark.parametrize(
    "given",
    [
        "--cudagraph-capture-sizes=1",
        "--max-cudagraph-capture-size=8",
        "--compilation-config={}",
        "-O.level=1",
    ],
)
def test_the_operators_graphs_are_left_as_they_are(given: str) -> None:
    command = started(auto(), given)
    assert not any(word.startswith("--cudagraph-capture-sizes") for word in command[:-1])
    assert command[-1] == given


@pytest.mark.usefixtures("on_h200")
def test_what_the_operator_sets_reaches_vllm() -> None:
    assert last(started(auto(max_loras=7)), "--max-loras") == "7"
    assert last(started(auto(max_cpu_loras=9)), "--max-loras") == "9"
    assert last(started(auto(max_cpu_loras=9)), "--max-cpu-loras") == "9"


@pytest.mark.usefixtures("on_h200")
@pytest.mark.parametrize("name", ["a", "new"])
def test_the_operators_arguments_for_vllm_are_planned_with(name: str) -> None:
    assert last(started(auto(), "--max-loras=5", name=name), "--max-loras") == "5"
    command = started(auto(), "--no-specialize-active-lora", name=name)
    assert command.index("--no-specialize-active-lora") > command.index("--specialize-active-lora")
    few = started(auto(), "--max-cpu-loras", "6")
    assert (last(few, "--max-loras"), last(few, "--max-cpu-loras")) == ("6", "6")
    assert last(started(auto(), "--gpu-memory-utilization", "0.15"), "--max-loras") == "4"


@pytest.mark.parametrize("length", ["auto", "-1", "32k"])
def test_a_length_that_vllm_chooses_is_planned_as_the_longest(length: str) -> None:
    for is_deployment in (False, True):
        given = with_operators(options(), [f"--max-model-len={length}"], is_deployment=is_deployment)
        assert given.max_model_len is None


@pytest.mark.usefixtures("on_h200")
def test_a_vllm_without_the_option_is_started_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_specializes()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    command = started(auto())
    assert "--specialize-active-lora" not in command
    assert last(command, "--gpu-memory-utilization") == "0.450"


@pytest.mark.usefixtures("on_h200")
def test_an_engine_without_adapters_has_no_slots() -> None:
    given = options(enable_lora=False)
    assert with_slots(given, SEVEN, [], is_deployment=True) == (given, None)


def test_without_a_driver_there_are_four(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: str) -> tuple[str, int]:
        raise NoDriver("no library")

    monkeypatch.setattr(module, "gpu_memory", missing)
    assert last(started(auto()), "--max-loras") == "4"


def test_on_the_cpu_there_are_four_as_before() -> None:
    cpu = options_of_bases(Settings(base=["a=/x"]), ["cpu"])["a"]
    assert cpu.max_loras == 4
    command = started(cpu)
    assert (last(command, "--max-loras"), "--specialize-active-lora" in command) == ("4", False)


def test_a_deployment_has_what_it_asks_for_and_else_as_many_as_fit() -> None:
    serving = Settings(base=["a=/x"]).serving

    def deployed(asked: dict[str, Any]) -> int | None:
        return place(serving, ["cuda:0"], "new", asked, {}, weights=1, free_memory=0).max_loras

    assert deployed({}) is None
    assert deployed({"max_loras": 2}) == 2


def test_each_of_several_gpus_has_a_part_of_the_weights_and_of_the_cache() -> None:
    def counted(gpus: int, cost: BaseCost = SEVEN) -> int:
        others = [f"cuda:{index}" for index in range(1, gpus)]
        return choose_slots(options(other_devices=others), cost, A100).count

    assert [counted(gpus) for gpus in (1, 2, 4, 8)] == [23, 36, 42, 45]
    assert SEVEN.kv_heads == 4
    assert counted(8, replace(SEVEN, kv_heads=8)) > counted(8), "the cache is split over its heads at most"
