"""Parameters of a generation that nobody knows: vLLM (0.32) would leave them out with a line in its log, and the
client would take an answer without `max_token` for one of 16 tokens."""

from __future__ import annotations

import difflib
from typing import Any

from tunewright.errors import InvalidRequest, quoted

_OF_ALL = """
    model stream stream_options temperature top_p top_k min_p seed stop stop_token_ids ignore_eos
    include_stop_str_in_output skip_special_tokens frequency_penalty presence_penalty repetition_penalty logit_bias
    structured_outputs watermarking user metadata store service_tier safety_identifier moderation prompt_cache_key
    prompt_cache_options prompt_cache_retention cache_salt priority request_id session_id kv_transfer_params
    ec_transfer_params mm_payload return_mm_kwargs vllm_xargs
"""
_OF_CHATS_AND_COMPLETIONS = """
    n max_tokens min_tokens logprobs prompt_logprobs logprob_token_ids echo length_penalty bad_words allowed_token_ids
    response_format use_beam_search add_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    truncation_side thinking_token_budget repetition_detection stream_interval return_token_ids return_token_offsets
    return_tokens_as_token_ids routed_experts_prompt_start guided_json guided_regex guided_choice guided_grammar
"""
_OF_CHATS = """
    messages tools tool_choice parallel_tool_calls functions function_call max_completion_tokens top_logprobs modalities
    audio prediction verbosity web_search_options reasoning_effort include_reasoning documents chat_template
    chat_template_kwargs add_generation_prompt continue_final_message media_io_kwargs mm_processor_kwargs
    return_assistant_tokens_mask return_prompt_text
"""
_OF_COMPLETIONS = "prompt prompt_embeds suffix best_of"
_OF_RESPONSES = """
    input instructions tools tool_choice parallel_tool_calls max_output_tokens max_tool_calls reasoning
    include_reasoning text top_logprobs include truncation conversation previous_response_id previous_input_messages
    prompt image background background_options context_management access_programs chat_template_kwargs
    enable_response_messages media_io_kwargs mm_processor_kwargs
"""
PARAMETERS = {
    "/v1/chat/completions": frozenset(f"{_OF_ALL} {_OF_CHATS_AND_COMPLETIONS} {_OF_CHATS}".split()),
    "/v1/completions": frozenset(f"{_OF_ALL} {_OF_CHATS_AND_COMPLETIONS} {_OF_COMPLETIONS}".split()),
    "/v1/responses": frozenset(f"{_OF_ALL} {_OF_RESPONSES}".split()),
}
"""What vLLM (0.26 and 0.32) or the `openai` packages (2 and 3) have by name; `unoffered` refuses some of it."""


def check_known(path: str, body: dict[str, Any]) -> None:
    """Raises InvalidRequest, naming the parameter that is not known, and the one that is most like it. One that is null
    asks for nothing."""
    known = PARAMETERS.get(path)
    if known is None or body.keys() <= known:
        return
    for name, value in body.items():
        if name not in known and value is not None:
            like = difflib.get_close_matches(name[:64], known, n=1)
            hint = f" Did you mean {like[0]}?" if like else ""
            raise InvalidRequest(
                f"Unknown parameter: {quoted(name)}.{hint}", param=name[:64], code="unknown_parameter"
            )
