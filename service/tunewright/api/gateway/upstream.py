"""The body that vLLM gets for a request: checked, with the engine's name for the model, and the adapter's chat
template."""

from __future__ import annotations

from typing import Any

from tunewright.api.gateway.bodies import check_tokens, write_body
from tunewright.api.gateway.limits import check_limits
from tunewright.api.gateway.parameters import check_known
from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.sampling import with_greedy_choices
from tunewright.api.gateway.tools import with_strict_tools
from tunewright.api.gateway.unoffered import check_offered
from tunewright.api.gateway.usage import check_stream
from tunewright.errors import InvalidRequest
from tunewright.rows.control_tokens import control_tokens

ENDED_BY_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})
_TAKES_TEMPLATE = frozenset({"/v1/chat/completions", "/tokenize"})
_CHATS = frozenset({"/v1/chat/completions", "/v1/responses"})
_TAKES_NO_TEMPLATE = frozenset({"/v1/responses"})
_RENDERED = ("messages", "tools", "documents", "instructions", "input")


def upstream_body(
    path: str,
    body: dict[str, Any],
    target: Target,
    most_tokens: int | None,
    *,
    size: int | None = None,
    in_parts: bool = False,
) -> bytes:
    """Check the request and encode it for vLLM. Raises InvalidRequest and UnsupportedFeature."""
    check_offered(path, body)
    check_known(path, body)
    check_stream(body)
    check_limits(body, target.context, most_tokens, size)
    body = {**body, **_plain_conversation(path, body, target), "model": target.internal_name}
    if target.chat_template is not None:
        if path in _TAKES_TEMPLATE and "prompt" not in body:
            body["chat_template"] = target.chat_template
        elif path in _TAKES_NO_TEMPLATE:
            raise InvalidRequest(
                f"{target.public_name} has a chat template of its own, which this route cannot take; use "
                "/v1/chat/completions.",
                param="model",
            )
    elif not target.base_has_template and path in _CHATS:
        raise InvalidRequest(
            f"{target.public_name} has no chat template: use /v1/completions, or fine-tune it with a "
            "`chat_template`.",
            param="model",
            code="no_chat_template",
        )
    if path in _CHATS:
        body = with_strict_tools(body)
    if path in ENDED_BY_DONE:
        body = with_greedy_choices(body)
    if target.vocabulary is not None:
        check_tokens(body, target.vocabulary)
    return write_body(body, in_parts=in_parts)


def _plain_conversation(path: str, body: dict[str, Any], target: Target) -> dict[str, Any]:
    """The parts of a body that a chat template renders, with the control tokens in them as plain text, as in training:
    what a user writes is no turn. A `prompt` is rendered by nobody and has the control tokens that its writer wants, as
    the `input` of embeddings has."""
    rendered = [part for part in _RENDERED if part in body]
    if path == "/v1/embeddings" or not rendered:
        return {}
    template = target.chat_template if path in _TAKES_TEMPLATE else None
    control = control_tokens(target.control_tokens if template else target.all_control_tokens, template)
    return {part: control.neutralized(body[part]) for part in rendered}
