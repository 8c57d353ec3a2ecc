"""A plugin of vLLM (entry point `vllm.general_plugins`), loaded by each of its processes: corrects it on the CPU,
bounds the white space in JSON and what is logged, tags its shared memory, and renders functions as training does.

To score the tokens of a prompt (`prompt_logprobs`, `echo` with `logprobs`), vLLM computes the logits of one request's
tokens, but applies the adapters of the batch's sequences to them. The numbers of rows differ as soon as there is
another sequence, which ends the engine; where they agree by chance, the adapter may be wrong. Here it is the request's
own.

A token without an adapter has the index -1, which vLLM's torch operators (0.32) take for the last slot: as soon as all
`--max-loras` slots have been used, answers of the base are mixed with an adapter. vLLM's GPU kernels leave such tokens
out, and so do the corrected operators.

vLLM's attention uses AMX tiles where the processor has them, but does not ask the system for them, as Linux requires of
each process (arch_prctl, ARCH_REQ_XCOMP_PERM): the first request then ends the worker with SIGILL, unless oneDNN has
asked by chance before.

A prompt that is read in several steps is sampled from in each, and what was sampled before its end is thrown away. For
a request with a seed, vLLM then sets its generator back, in a way that only those of GPUs have: on the CPU (0.32), the
exception ends the engine. Here the generator gets the state that it had, so that the answer does not depend on the
steps.

vLLM's grammars of JSON allow any white space between the parts of a value, and small models write it until their tokens
are used up. xgrammar has a limit for that, which vLLM does not set.

On the CPU, vLLM's server, scheduler and worker are processes that share the cores with their computation, and wait for
each other's messages without sleeping.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from multiprocessing import shared_memory
from time import monotonic, sleep
from typing import Any

from tunewright.engine.leftovers import tag_shared_memory
from tunewright.engine.vllm_forks import fork_processes
from tunewright.logs import limit_records
from tunewright.rows.tools import as_rendered

_MOST_WHITE_SPACE = 2
"""Characters of white space in a row in tool calls, as xgrammar's documentation suggests."""
_MOST_WHITE_SPACE_OF_ANSWERS = 32
"""The same where the answer is JSON, which people read, and models indent: a new line, and seven levels of four. It
takes xgrammar no longer to compile than 2 does."""
_SHORTEST_SLEEP, _LONGEST_SLEEP = 5e-5, 2e-3
"""Seconds between two looks for a message: a step of a small model takes 5 ms."""
_OPERATORS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def register() -> None:
    """Called by vLLM at the start of each process."""
    limit_records()
    tag_shared_memory(shared_memory)
    import torch
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.platforms import current_platform
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    for name in _OPERATORS:
        corrected = without_adapterless_tokens(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, corrected)
    request_amx(torch.cpu)
    if current_platform.is_cpu():
        fork_processes()
        wait_without_spinning()
    score_prompts_with_their_adapter(CPUModelRunner)
    set_seeds_back(CPUModelRunner)
    bound_white_space()
    bound_white_space_of_answers()
    render_tools_as_learnt()


def request_amx(cpu: Any) -> None:
    """Ask the system for AMX tiles; where it refuses them, vLLM must not find them in `cpu`, the module torch.cpu."""
    if cpu._is_amx_tile_supported() and not cpu._init_amx():
        cpu._is_amx_tile_supported = lambda: False


def wait_without_spinning() -> None:
    """Let vLLM's processes sleep while they wait for each other's messages.

    For a second after each message they look for the next one without a pause, and so take the cores from the
    computation that they wait for. Here they sleep between two looks, for a twentieth of the time that they have waited
    already. They cannot wait for the notification instead: ZeroMQ drops one that follows another within a millisecond.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    waits = SpinCondition.wait

    def corrected(self: Any, timeout_ms: int | None = None) -> None:
        waited = monotonic() - self.last_read
        if waited <= self.busy_loop_s:
            sleep(min(max(waited / 20, _SHORTEST_SLEEP), _LONGEST_SLEEP))
        else:
            waits(self, timeout_ms)

    SpinCondition.wait = corrected


def bound_white_space() -> None:
    """Bound it in the grammars of tool calls, where this version of vLLM makes them with an xgrammar that can."""
    try:
        from vllm.tool_parsers import structural_tag_registry
        from xgrammar.structural_tag import JSONSchemaFormat
    except ImportError:
        return
    if "max_whitespace_cnt" not in JSONSchemaFormat.model_fields:
        return
    for name in ("JSONSchemaFormat", "get_xgrammar_model_structural_tag"):
        made = getattr(structural_tag_registry, name, None)
        if made is not None and not isinstance(made, partial):
            setattr(structural_tag_registry, name, partial(made, max_whitespace_cnt=_MOST_WHITE_SPACE))


def bound_white_space_of_answers() -> None:
    """The same in the grammars of `response_format` (json_object, json_schema) and of `structured_outputs.json`."""
    try:
        from xgrammar import GrammarCompiler
    except ImportError:
        return
    compiler: Any = GrammarCompiler
    original = compiler.compile_json_schema
    if hasattr(original, "corrected") or "max_whitespace_cnt" not in signature(original).parameters:
        return

    def corrected(self: Any, schema: Any, **options: Any) -> Any:
        return original(self, schema, **{"max_whitespace_cnt": _MOST_WHITE_SPACE_OF_ANSWERS, **options})

    corrected.corrected = True  # type: ignore[attr-defined]
    compiler.compile_json_schema = corrected


def render_tools_as_learnt() -> None:
    """Leave `strict` out of the functions that chat templates get (rows/tools.py), where this version of vLLM renders
    all chats, responses and their tokens in one function."""
    try:
        from vllm.renderers.online_renderer import OnlineRenderer
    except ImportError:
        return
    renderer: Any = OnlineRenderer
    original = getattr(renderer, "preprocess_chat", None)
    if original is None or hasattr(original, "corrected"):
        return
    arguments = signature(original)

    async def corrected(*args: Any, **options: Any) -> Any:
        given = arguments.bind(*args, **options)
        if "tool_dicts" in given.arguments:
            given.arguments["tool_dicts"] = as_rendered(given.arguments["tool_dicts"])
        return await original(*given.args, **given.kwargs)

    corrected.corrected = True  # type: ignore[attr-defined]
    renderer.preprocess_chat = corrected


def without_adapterless_tokens(operator: Any) -> Any:
    """The operator, applied to inputs [tokens, in] in which tokens without an adapter are zeros."""
    if hasattr(operator, "corrected"):
        return operator

    def corrected(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> Any:
        has_adapter = (indices >= 0).unsqueeze(1)
        return operator(inputs * has_adapter, weights, output, indices, *rest, **named)

    corrected.corrected = True  # type: ignore[attr-defined]
    return corrected


def score_prompts_with_their_adapter(runner: Any) -> None:
    """Correct `runner`, vLLM's class CPUModelRunner, so that a prompt is scored with the adapter of its request."""
    original = runner._get_prompt_logprobs_dict
    if hasattr(original, "corrected"):
        return

    def corrected(self: Any, hidden_states: Any, num_scheduled_tokens: dict[str, int]) -> dict[str, Any]:
        requests = self.num_prompt_logprobs
        if self.lora_config is None:
            return dict(original(self, hidden_states, num_scheduled_tokens))
        scored: dict[str, Any] = {}
        try:
            # only those of this step: the adapter of one that waits may have lost its slot
            for id in [id for id in requests if id in num_scheduled_tokens]:
                self.num_prompt_logprobs = {id: requests[id]}
                with _adapter_for_all_rows(
                    self.lora_manager._adapter_manager, self.requests[id].lora_request
                ):
                    scored |= original(self, hidden_states, num_scheduled_tokens)
                if not self.num_prompt_logprobs:  # its last chunk was scored
                    del requests[id]
        finally:
            self.num_prompt_logprobs = requests
        return scored

    corrected.corrected = True  # type: ignore[attr-defined]
    runner._get_prompt_logprobs_dict = corrected


def set_seeds_back(runner: Any) -> None:
    """Correct `runner`, vLLM's class CPUModelRunner, so that what is sampled before the end of a prompt costs its
    request's generator nothing."""
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync
    if hasattr(sample, "corrected"):
        return

    def unread(self: Any) -> list[int]:
        """The places in the batch of requests with a seed whose prompts are not at their end."""
        discarded, generators = self.discard_request_mask.np, self.input_batch.generators
        return [place for place in generators if place < self.input_batch.num_reqs and discarded[place]]

    def corrected(self: Any, *args: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        states = [(generators[place], generators[place].get_state()) for place in unread(self)]
        sampled = sample(self, *args, **options)
        for generator, state in states:
            generator.set_state(state)
        return sampled

    def without_offsets(self: Any, *args: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        kept = {place: generators.pop(place) for place in unread(self)}
        try:
            return bookkeeping(self, *args, **options)
        finally:
            generators.update(kept)

    corrected.corrected = True  # type: ignore[attr-defined]
    runner._sample, runner._bookkeeping_sync = corrected, without_offsets


@contextmanager
def _adapter_for_all_rows(manager: Any, lora_request: Any | None) -> Iterator[None]:
    """Until the end, logits are computed with the adapter of this request, or none, for any number of rows.

    One index is enough: the operators broadcast it, and do not copy the adapter's weights for each row.
    """
    slot = -1 if lora_request is None else manager.lora_index_to_id.index(lora_request.lora_int_id)
    wrappers = list(manager.punica_wrapper_mapping.values())
    kept = [(wrapper._sampler_indices[0].clone(), wrapper.indices_len[1]) for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper._sampler_indices[0] = slot
        wrapper.indices_len[1] = 1
    try:
        yield
    finally:
        for wrapper, (index, length) in zip(wrappers, kept, strict=True):
            wrapper._sampler_indices[0] = index
            wrapper.indices_len[1] = length
