"""The plugin of vLLM's CPU operators: a token without an adapter gets nothing of the last slot."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xgrammar
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tool_parsers import structural_tag_registry
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from tunewright.engine import vllm_plugin
from tunewright.engine.vllm_plugin import (
    bound_white_space,
    bound_white_space_of_answers,
    render_tools_as_learnt,
    request_amx,
    score_prompts_with_their_adapter,
    set_seeds_back,
    wait_without_spinning,
    without_adapterless_tokens,
)

SLOTS, IN, OUT, RANK = 4, 6, 8, 2
INDICES = torch.tensor([0, -1, 3, -1, 1])


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(len(INDICES), IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(SLOTS, 1, OUT, IN, generator=torch.Generator().manual_seed(1))


Call = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], None]
CALLS: dict[str, Call] = {
    "bgmv_shrink": lambda op, x, w, y: op(x, w, y, INDICES, 2.0),
    "bgmv_expand": lambda op, x, w, y: op(x, w, y, INDICES, add_inputs=True),
    "bgmv_expand_slice": lambda op, x, w, y: op(x, w, y, INDICES, 0, OUT, add_inputs=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_tokens_without_an_adapter_are_left_out(
    name: str, inputs: torch.Tensor, weights: torch.Tensor
) -> None:
    operator = getattr(lora_ops, name)
    plain, mended = torch.zeros(len(INDICES), OUT), torch.zeros(len(INDICES), OUT)
    CALLS[name](operator, inputs, weights, plain)
    CALLS[name](without_adapterless_tokens(operator), inputs, weights, mended)
    with_adapter = INDICES >= 0
    assert torch.equal(mended[with_adapter], plain[with_adapter])
    assert not mended[~with_adapter].any()
    assert plain[~with_adapter].any(), "vLLM's own takes the last slot; without that fault the plugin can go"


def test_it_is_mended_once() -> None:
    once = without_adapterless_tokens(lora_ops.bgmv_shrink)
    assert without_adapterless_tokens(once) is once


def test_waiting_for_a_message_takes_no_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)
    wait_without_spinning()
    condition = SpinCondition.__new__(SpinCondition)
    condition.is_reader, condition.busy_loop_s = True, 1.0
    slept: list[float] = []
    monkeypatch.setattr(vllm_plugin, "monotonic", lambda: 100 + sum(slept))
    monkeypatch.setattr(vllm_plugin, "sleep", slept.append)
    condition.last_read = 100.0
    while sum(slept) < 1:
        condition.wait()
    assert slept == sorted(slept), "it looks again soon at first, and then less and less often"
    assert (slept[0], slept[-1]) == (5e-5, 2e-3)
    assert len(slept) < 1000

    condition.last_read -= 2
    polled: list[int] = []
    condition.poller = SimpleNamespace(poll=lambda timeout: polled.append(timeout) or [])
    condition.read_cancel_socket = condition.local_notify_socket = None
    condition.wait(7)
    assert polled == [7], "after the time for which vLLM spins it waits as vLLM does"


def test_vllm_finds_it() -> None:
    [found] = entry_points(group="vllm.general_plugins", name="tunewright")
    assert found.value == "tunewright.engine.vllm_plugin:register"


def cpu_with(*, amx: bool, granted: bool) -> SimpleNamespace:
    """A stand-in for the module torch.cpu; `requests` counts how often AMX was requested."""
    cpu = SimpleNamespace(requests=0)

    def init_amx() -> bool:
        cpu.requests += 1
        return granted

    cpu._is_amx_tile_supported = lambda: amx
    cpu._init_amx = init_amx
    return cpu


@pytest.mark.parametrize(
    ("amx", "granted", "requests", "used"),
    [(True, True, 1, True), (True, False, 1, False), (False, False, 0, False)],
)
def test_amx_is_used_only_where_the_system_grants_it(
    amx: bool, granted: bool, requests: int, used: bool
) -> None:
    cpu = cpu_with(amx=amx, granted=granted)
    request_amx(cpu)
    assert (cpu.requests, cpu._is_amx_tile_supported()) == (requests, used)


PROMPTS = {"base": 3, "first": 1, "other": 5}
"""Tokens to score, by request; `first` and `other` have adapters."""


class FakeRunner:
    """What vLLM's runner does to score prompts, with vLLM's own wrapper of the operators."""

    def __init__(self) -> None:
        self.lora_config: object | None = object()
        self.num_prompt_logprobs = dict.fromkeys([*PROMPTS, "long", "waits"], 1)
        self.hidden = {
            name: torch.randn(rows, IN, generator=torch.Generator().manual_seed(rows))
            for name, rows in {**PROMPTS, "long": 2}.items()
        }
        adapters = {"base": None, "first": 7, "other": 9, "long": 7, "waits": 5}
        self.requests = {
            name: SimpleNamespace(lora_request=id and SimpleNamespace(lora_int_id=id))
            for name, id in adapters.items()
        }
        self.a = torch.randn(SLOTS, 1, RANK, IN, generator=torch.Generator().manual_seed(8))
        self.b = torch.randn(SLOTS, 1, OUT, RANK, generator=torch.Generator().manual_seed(9))
        self.wrapper = punica_cpu.PunicaWrapperCPU(16, 4, "cpu")
        self.wrapper._sampler_indices[:4] = torch.tensor([-1, 2, 0, 2])
        self.wrapper.indices_len[:] = [11, 4, 4, 11]
        manager = SimpleNamespace(
            lora_index_to_id=[9, None, 7, None], punica_wrapper_mapping={"lm": self.wrapper}
        )
        self.lora_manager = SimpleNamespace(_adapter_manager=manager)

    def logits(self, name: str) -> torch.Tensor:
        logits = torch.zeros(len(self.hidden[name]), OUT)
        self.wrapper.add_lora_logits(logits, self.hidden[name], self.a, self.b, 1.0)
        return logits

    def _get_prompt_logprobs_dict(
        self, hidden_states: object, scheduled: dict[str, int]
    ) -> dict[str, torch.Tensor]:
        found = {name: self.logits(name) for name in self.num_prompt_logprobs if name in scheduled}
        for name in found:
            if name != "long":
                del self.num_prompt_logprobs[name]
        return found


def test_each_prompt_is_scored_with_the_adapter_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Corrected(FakeRunner):
        _get_prompt_logprobs_dict = FakeRunner._get_prompt_logprobs_dict

    for name in ("bgmv_shrink", "bgmv_expand"):
        monkeypatch.setattr(punica_cpu, name, without_adapterless_tokens(getattr(lora_ops, name)))
    score_prompts_with_their_adapter(Corrected)
    score_prompts_with_their_adapter(Corrected)
    runner = Corrected()
    scheduled = {name: len(rows) for name, rows in runner.hidden.items()}
    found = runner._get_prompt_logprobs_dict(None, scheduled)
    for name, slot in {"base": None, "first": 2, "other": 0, "long": 2}.items():
        expected = (
            torch.zeros(len(runner.hidden[name]), OUT)
            if slot is None
            else runner.hidden[name] @ runner.a[slot, 0].T @ runner.b[slot, 0].T
        )
        torch.testing.assert_close(found[name], expected)
    assert runner.num_prompt_logprobs == {"long": 1, "waits": 1}, (
        "one has another chunk, one no slot in this step"
    )
    assert runner.wrapper.sampler_indices.tolist() == [-1, 2, 0, 2], "the sequences keep theirs"
    with pytest.raises(RuntimeError):
        FakeRunner()._get_prompt_logprobs_dict(
            None, scheduled
        )  # vLLM's own; without that fault the plugin can go


def test_without_adapters_vllms_own_scores_prompts() -> None:
    class Plain:
        lora_config = None
        num_prompt_logprobs = None

        def _get_prompt_logprobs_dict(
            self, hidden_states: object, scheduled: dict[str, int]
        ) -> dict[str, str]:
            return {"a": "scored"}

    score_prompts_with_their_adapter(Plain)
    assert Plain()._get_prompt_logprobs_dict(None, {}) == {"a": "scored"}


FAMILIES = ("hermes", "llama", "qwen_3_coder", "deepseek_r1")


def white_space_limits(family: str) -> set[int | None]:
    """Of all JSON in the grammar of a forced call."""
    tool = ChatCompletionToolsParam(
        type="function", function={"name": "f", "strict": True, "parameters": {"type": "object"}}
    )
    found: set[int | None] = set()

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            found.update({node.get("max_whitespace_cnt")} if node.get("type") == "json_schema" else ())
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            visit(item)

    tag = structural_tag_registry.get_model_structural_tag(family, [tool], "required", False)
    assert tag is not None
    visit(tag.model_dump())
    return found


def test_white_space_in_tool_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {family: white_space_limits(family) for family in FAMILIES}
    assert before == {family: {None} for family in FAMILIES}, "once vLLM bounds it, the plugin need not"
    for name in ("JSONSchemaFormat", "get_xgrammar_model_structural_tag"):
        monkeypatch.setattr(structural_tag_registry, name, getattr(structural_tag_registry, name))
    for _ in ("once", "again"):
        bound_white_space()
        assert all(white_space_limits(family) == {2} for family in FAMILIES)


def longest_white_space(backend: XgrammarBackend, kind: StructuredOutputOptions, schema: str) -> int:
    """How many spaces the grammar takes after the bracket, of a thousand."""
    matcher = backend.compile_grammar(kind, schema).matcher
    assert matcher.accept_string("{")
    return next((n for n in range(1000) if not matcher.accept_string(" ")), 1000)


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (StructuredOutputOptions.JSON_OBJECT, ""),
        (StructuredOutputOptions.JSON, '{"type": "object", "properties": {"a": {"type": "string"}}}'),
    ],
)
def test_white_space_in_json_answers_is_bounded_and_leaves_room_to_indent(
    monkeypatch: pytest.MonkeyPatch, kind: StructuredOutputOptions, schema: str
) -> None:
    tokens = xgrammar.TokenizerInfo([chr(n) for n in range(32, 127)] + ["\n", "</s>"], stop_token_ids=[96])
    backend = object.__new__(XgrammarBackend)
    backend.compiler = xgrammar.GrammarCompiler(tokens, cache_enabled=False)
    backend.disable_any_whitespace, backend.vocab_size, backend.num_speculative_tokens = False, 97, 0
    assert longest_white_space(backend, kind, schema) == 1000, "once vLLM bounds it, the plugin need not"
    monkeypatch.setattr(
        xgrammar.GrammarCompiler, "compile_json_schema", xgrammar.GrammarCompiler.compile_json_schema
    )
    for _ in ("once", "again"):
        bound_white_space_of_answers()
        assert longest_white_space(backend, kind, schema) == 32
    matcher = backend.compile_grammar(StructuredOutputOptions.JSON_OBJECT, "").matcher
    assert matcher.accept_string('{\n    "a": {\n        "b": {\n            "c": [\n                1\n')


@pytest.mark.anyio
@pytest.mark.parametrize("as_keyword", [True, False])
async def test_templates_get_functions_without_strict(
    monkeypatch: pytest.MonkeyPatch, as_keyword: bool
) -> None:
    async def original(
        self: Any, request: str, messages: str, tool_dicts: Any = None, *, skip_mm_cache: bool = False
    ) -> Any:
        return request, messages, tool_dicts, skip_mm_cache

    assert "tool_dicts" in signature(OnlineRenderer.preprocess_chat).parameters, "vLLM's own has them too"
    monkeypatch.setattr(OnlineRenderer, "preprocess_chat", original)
    render_tools_as_learnt()
    render_tools_as_learnt()
    tools = [{"type": "function", "function": {"name": "f", "strict": True}}, {"type": "custom"}]
    plain = [{"type": "function", "function": {"name": "f"}}, {"type": "custom"}]
    renderer: Any = object.__new__(OnlineRenderer)
    if as_keyword:
        found = await renderer.preprocess_chat("r", "m", tool_dicts=tools, skip_mm_cache=True)
    else:
        found = await renderer.preprocess_chat("r", "m", tools, skip_mm_cache=True)
    assert found == ("r", "m", plain, True)
    assert tools[0]["function"]["strict"] is True, "the request itself is not changed"  # type: ignore[index]
    assert await renderer.preprocess_chat("r", "m") == ("r", "m", None, False)


def test_what_is_sampled_before_the_end_of_a_prompt_costs_its_seed_nothing() -> None:
    class Runner:
        """Two requests with seeds, the first of which has read a part of its prompt."""

        def __init__(self) -> None:
            generators = {place: torch.Generator().manual_seed(place) for place in (0, 1)}
            self.input_batch = SimpleNamespace(generators=generators, num_reqs=2)
            self.discard_request_mask = SimpleNamespace(np=[True, False, True])

        def _sample(self) -> list[float]:
            generators = self.input_batch.generators.values()
            return [torch.rand(1, generator=one).item() for one in generators]

        def _bookkeeping_sync(self) -> None:  # as vLLM's
            if (generator := self.input_batch.generators.get(0)) is not None:
                generator.get_offset()

    runner: Any = Runner
    with pytest.raises(RuntimeError, match="does not use offset"):  # without that fault the plugin can go
        Runner()._bookkeeping_sync()
    for _ in range(2):
        set_seeds_back(runner)
    made = Runner()
    first = made._sample()
    made._bookkeeping_sync()
    assert list(made.input_batch.generators) == [1, 0]
    made.discard_request_mask.np[0] = False
    second, again = made._sample(), torch.rand(2, generator=torch.Generator().manual_seed(1))
    assert second[1] == first[0], "it is where it was"
    assert [first[1], second[0]] == again.tolist(), "that of the other one goes on"
