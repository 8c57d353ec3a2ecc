"""Tool calls that a request forces: what the engine must be sent so that their arguments are objects of the function's
schema.

vLLM (0.32) holds a forced call to the names of the functions, but its arguments to the schema only where the function
is `strict`, and to no schema where it has none. Its `--tool-strict-level` (0.31 on) would also constrain the calls that
no request forces, and fail on schemas that it cannot make a grammar of. So functions are made strict for the requests
that force a call. Chat templates get them without `strict` (rows/tools.py).
"""

from __future__ import annotations

from typing import Any

from tunewright.api.gateway.bodies import write_body
from tunewright.errors import InvalidRequest

_ALTERNATIVES = ("anyOf", "oneOf")
_COMBINATIONS = (*_ALTERNATIVES, "allOf")
_DEFINITIONS = ("$defs", "definitions")
_MOST_ALTERNATIVES = 32
_LARGEST_COMBINED = 2**16
"""Bytes of a schema with alternatives, each of which repeats what is beside them."""
_MOST_REFERENCES = 16


def with_strict_tools(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat or a response in which the functions that its `tool_choice` forces are strict.

    `body` itself is not changed, and what is no valid list of tools is left to the engine. Raises InvalidRequest where
    the parameters of such a function cannot be an object.
    """
    choice, tools = body.get("tool_choice"), body.get("tools")
    if not isinstance(tools, list) or not forces_call(choice):
        return body
    named = _name_in(choice)
    return {**body, "tools": [_strict(tool, named, f"tools.{n}") for n, tool in enumerate(tools)]}


def forces_call(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return bool(choice == "required")
    return choice.get("type") != "allowed_tools" or choice.get("mode") == "required"


def compiled_tools(body: dict[str, Any]) -> list[Any]:
    """The tools whose parameters vLLM makes a grammar of: all, where the request forces a call; else strict ones."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    if not isinstance(tools, list) or choice == "none":
        return []
    return tools if forces_call(choice) else [tool for tool in tools if _is_strict(tool)]


def _is_strict(tool: Any) -> bool:
    """A tool of a chat, which has its function under `function`, or of a response; or a namespace of these."""
    if not isinstance(tool, dict):
        return False
    if isinstance(tool.get("tools"), list):
        return any(isinstance(each, dict) and each.get("strict") is True for each in tool["tools"])
    function = tool.get("function", tool)
    return isinstance(function, dict) and function.get("strict") is True


def _name_in(choice: Any) -> str | None:
    """The function that the choice names, if it names one."""
    if not isinstance(choice, dict):
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _strict(tool: Any, named: str | None, where: str) -> Any:
    """A tool of a chat, which has its function under `function`, or of a response, which is a function itself.

    A response's namespace has functions of its own, which are named with it or without.
    """
    if not isinstance(tool, dict):
        return tool
    if tool.get("type") == "namespace" and isinstance(tool.get("tools"), list):
        return {
            **tool,
            "tools": [_strict(each, None, f"{where}.tools.{n}") for n, each in enumerate(tool["tools"])],
        }
    function = tool.get("function", tool)
    if tool.get("type") != "function" or not isinstance(function, dict):
        return tool
    if named is not None and function.get("name") != named:
        return tool
    if function is tool:
        return _strict_function(tool, where)
    return {**tool, "function": _strict_function(function, f"{where}.function")}


def _strict_function(function: dict[str, Any], where: str) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        return function
    return {**function, "strict": True, "parameters": object_schema(schema, f"{where}.parameters")}


def object_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """The schema of the objects that meet `schema`, with `type` at its top, or in each of its alternatives.

    The engine's grammars ignore what is beside a `$ref`, `anyOf`, `oneOf` or `allOf`, and take any value where those
    name no type. So the top level is combined here; where its parts have such keywords themselves, these are left out.
    Raises InvalidRequest, naming `param`, where no object meets the schema, or where it is too large to combine.
    """
    if schema.get("type") == "object" and not any(key in schema for key in (*_COMBINATIONS, "$ref")):
        return schema
    definitions = {key: schema[key] for key in _DEFINITIONS if isinstance(schema.get(key), dict)}
    top = _merged(schema, definitions)
    key = next((key for key in _ALTERNATIVES if isinstance(top.get(key), list)), None)
    if key is None:
        alternatives = [top]
    else:
        _check_size(schema, top[key], param)
        rest = _without(top, _COMBINATIONS)
        alternatives = [_combined(rest, _merged(branch, definitions)) for branch in top[key]]
    objects = [
        {**_without(each, (*_COMBINATIONS, *_DEFINITIONS)), "type": "object"}
        for each in alternatives
        if _may_be_object(each.get("type", "object"))
    ]
    if not objects:
        raise InvalidRequest(
            f"The arguments of a function are an object, which `{param}` does not allow: its type must be object.",
            param=param,
        )
    return {**(objects[0] if len(objects) == 1 else {"anyOf": objects}), **definitions}


def _check_size(schema: dict[str, Any], alternatives: list[Any], param: str) -> None:
    if len(alternatives) > _MOST_ALTERNATIVES or len(write_body(schema)) > _LARGEST_COMBINED:
        raise InvalidRequest(
            f"`{param}` is too large: with anyOf or oneOf at its top it may have up to {_MOST_ALTERNATIVES} "
            f"alternatives and {_LARGEST_COMBINED} bytes.",
            param=param,
        )


def _merged(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema with what its `$ref` names, and the parts of its `allOf`, on one level."""
    merged = schema if isinstance(schema, dict) else {}
    for _ in range(_MOST_REFERENCES):
        named = _named(merged.get("$ref"), definitions)
        if named is None:
            break
        merged = _combined(_without(merged, ("$ref",)), named)
    parts = merged.get("allOf")
    if isinstance(parts, list):
        merged = _without(merged, ("allOf",))
        for part in parts[:_MOST_ALTERNATIVES]:
            if isinstance(part, dict):
                merged = _combined(merged, _named(part.get("$ref"), definitions) or part)
    return merged


def _named(reference: Any, definitions: dict[str, Any]) -> dict[str, Any] | None:
    """What a `$ref` of the form `#/$defs/name` names."""
    parts = reference.split("/") if isinstance(reference, str) else []
    if len(parts) != 3 or parts[0] != "#":
        return None
    found = definitions.get(parts[1], {}).get(parts[2])
    return found if isinstance(found, dict) else None


def _combined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A schema for what meets both, where they do not name the same property or limit."""
    combined = {**one, **other}
    if isinstance(one.get("properties"), dict) and isinstance(other.get("properties"), dict):
        combined["properties"] = {**one["properties"], **other["properties"]}
    if isinstance(one.get("required"), list) and isinstance(other.get("required"), list):
        combined["required"] = [*one["required"], *other["required"]]
    return combined


def _without(schema: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}


def _may_be_object(kind: Any) -> bool:
    return kind == "object" or (isinstance(kind, list) and "object" in kind)
