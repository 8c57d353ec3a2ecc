"""Parameters of a generation that ask for what is not offered, and that vLLM (0.32) would leave out without a word: the
client would take a plain answer for one that was searched for, spoken, constrained or the best of several.

Parameters that are hints, or say who asks and what for, are left out by the engine: `service_tier`, `store`,
`metadata`, `prediction`, `verbosity`, `safety_identifier`, `prompt_cache_key` and the like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunewright.api.gateway.limits import whole
from tunewright.errors import UnsupportedFeature, quoted

_Asks = Callable[[Any, dict[str, Any]], bool]
"""Whether a value of the parameter asks for something, with the whole body."""


def _is_there(value: Any, _: dict[str, Any]) -> bool:
    return value is not None


def _is_not_text(value: Any, _: dict[str, Any]) -> bool:
    return value is not None and value != ["text"]


def _is_named(value: Any, _: dict[str, Any]) -> bool:
    return isinstance(value, dict)


def _is_more(value: Any, body: dict[str, Any]) -> bool:
    return whole(value, 1) > whole(body.get("n"), 1)


def _is_binary(value: Any, _: dict[str, Any]) -> bool:
    return value not in (None, "float", "base64")


def _is_another_choice(value: Any, _: dict[str, Any]) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] != "function"


_GUIDED = "vLLM has no such parameter any more: use response_format, or structured_outputs"
_OF_CHATS: dict[str, tuple[_Asks, str]] = {
    "functions": (lambda value, _: bool(value), "it is the older form of tools: send these"),
    "function_call": (_is_named, "it is the older form of tool_choice: send tools and that"),
    "tool_choice": (_is_another_choice, "besides auto, none and required it names one function"),
    "modalities": (_is_not_text, 'the models answer with text: leave it out, or send ["text"]'),
    "audio": (_is_there, "the models answer with text: leave it out"),
    "web_search_options": (_is_there, "nothing is searched for: leave it out"),
}
_OF_ALL: dict[str, tuple[_Asks, str]] = {
    "best_of": (_is_more, "no choice is made among several answers: ask for them with n"),
    "moderation": (_is_there, "nothing is moderated: leave it out"),
    **{f"guided_{name}": (_is_there, _GUIDED) for name in ("json", "regex", "choice", "grammar")},
}
_OF_RESPONSES: dict[str, tuple[_Asks, str]] = {
    "conversation": (_is_there, "nothing is stored: send the whole conversation in input"),
}
_OF_EMBEDDINGS: dict[str, tuple[_Asks, str]] = {
    "encoding_format": (_is_binary, "an answer without JSON tells no tokens: ask for float or base64"),
}
_UNOFFERED = {
    "/v1/chat/completions": _OF_ALL | _OF_CHATS,
    "/v1/completions": _OF_ALL,
    "/v1/responses": _OF_ALL | _OF_RESPONSES,
    "/v1/embeddings": _OF_EMBEDDINGS,
}
_TOOLS_OF_RESPONSES = frozenset({"function", "namespace"})
"""Of others, which the server would carry out, vLLM tells only gpt-oss, and only where it has a tool server."""


def check_offered(path: str, body: dict[str, Any]) -> None:
    """Raises UnsupportedFeature, naming the parameter."""
    for name, (asks, why) in _UNOFFERED.get(path, {}).items():
        if name in body and asks(body[name], body):
            raise UnsupportedFeature(f"This `{name}` is not offered: {why}.", param=name)
    tools = body.get("tools")
    if path != "/v1/responses" or not isinstance(tools, list):
        return
    for number, tool in enumerate(tools):
        type = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(type, str) and type not in _TOOLS_OF_RESPONSES:
            raise UnsupportedFeature(
                f"Tools of the type {quoted(type)} are not offered: the service carries out none. Send functions, and "
                "carry them out yourself.",
                param=f"tools.{number}.type",
            )
