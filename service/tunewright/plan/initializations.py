"""How a new adapter begins, by peft's names. Pure."""

from __future__ import annotations

from typing import Literal

InitName = Literal["gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"]
_CHANGE_BASE = ("pissa", "olora")


def changes_base(init: str | None) -> bool:
    """Whether an adapter that begins so takes what it begins with out of the base's weights. As an adapter on the base
    as it is, it has twice the rank: what it has become, and what it began with, negated."""
    return init is not None and init.startswith(_CHANGE_BASE)


def served_rank(rank: int, init: str | None) -> int:
    """The rank of the product."""
    return 2 * rank if changes_base(init) else rank
