"""`calculate_output` of a `multi` grader: a formula over the rewards of its graders.

It is parsed with `ast` and walked here; nothing of it is executed. OpenAI's operators are + - * / ^ and its functions
those of `_FUNCTIONS`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache

LONGEST = 1000
_MOST_NODES, _DEEPEST = 300, 30
_OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: math.pow,
}  # fmt: skip
_SIGNS: dict[type[ast.AST], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., float]]] = {
    "min": (1, 100, lambda *values: min(values)), "max": (1, 100, lambda *values: max(values)),
    "abs": (1, 1, abs), "floor": (1, 1, math.floor),
    "ceil": (1, 1, math.ceil), "exp": (1, 1, math.exp), "sqrt": (1, 1, math.sqrt), "log": (1, 1, math.log),
}  # fmt: skip
"""Least and most arguments, and the function; `log` is the natural one."""


class NoResult(ValueError):
    """A formula that has no finite result for these rewards."""


def check(formula: str, names: Mapping[str, object]) -> None:
    """Raises ValueError where it is no formula over the graders of these names."""
    for node in ast.walk(_parsed(formula)):
        if isinstance(node, ast.Name) and node.id not in names and node.id not in _FUNCTIONS:
            raise ValueError(f"there is no grader {node.id[:64]!r}; there are {', '.join(names)}")


def computed(formula: str, rewards: Mapping[str, float]) -> float:
    """The result of a formula that was checked. Raises NoResult."""
    try:
        value = float(_value(_parsed(formula), rewards))
    except (ArithmeticError, ValueError) as error:  # a division by zero, a logarithm of what is not positive
        raise NoResult(f"calculate_output has no result for {dict(rewards)}: {error}") from None
    if not math.isfinite(value):
        raise NoResult(f"calculate_output is {value} for {dict(rewards)}")
    return value


@lru_cache(64)
def _parsed(formula: str) -> ast.expr:
    if len(formula) > LONGEST:
        raise ValueError(f"a formula has at most {LONGEST} characters")
    if "**" in formula or "//" in formula:
        raise ValueError("the operators of a formula are + - * / ^")
    try:
        tree = ast.parse(formula.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"{formula[:80]!r} is no formula: use numbers, graders' names and + - * / ^"
        ) from None
    nodes = sum(1 for _ in ast.walk(tree))
    if nodes > _MOST_NODES:
        raise ValueError("the formula has too many parts")
    _check_node(tree, 0)
    return tree


def _check_node(node: ast.AST, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("the formula is nested too deeply")
    parts: list[ast.expr]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        parts = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        parts = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise ValueError(f"there is no function {node.func.id[:64]!r}; there are {', '.join(_FUNCTIONS)}")
        least, most, _ = _FUNCTIONS[node.func.id]
        if not least <= len(node.args) <= most:
            raise ValueError(f"{node.func.id} takes {'one argument' if most == 1 else 'arguments'}")
        parts = node.args
    elif isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and _is_number(node.value)):
        parts = []
    else:
        raise ValueError("a formula has numbers, graders' names, + - * / ^ and functions only")
    for part in parts:
        _check_node(part, depth + 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _value(node: ast.expr, rewards: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        if node.id not in rewards:
            raise ValueError(f"there is no grader {node.id!r}")
        return rewards[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, rewards), _value(node.right, rewards))
    if isinstance(node, ast.UnaryOp):
        return _SIGNS[type(node.op)](_value(node.operand, rewards))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), "it was checked"
    return float(_FUNCTIONS[node.func.id][2](*(_value(one, rewards) for one in node.args)))
