"""Warnings of a plan: options that rarely do what was meant. Each is a pure function that returns a text or None.

The numbers are those of docs/reference/training-pitfalls.md, which lists all pitfalls and what guards each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunewright.plan.defaults import BATCH_RANGE, RATE_RANGES, Resolved, rank_for
from tunewright.plan.shape import ModelShape

FEW_ROWS = 1000


def rank_too_large(rank: int | None, rows: int) -> str | None:
    """More than twice the rank that the number of rows suggests."""
    if rank is None:
        return None
    advised = rank_for(rows, 512)
    if rank <= 2 * advised:
        return None
    return (
        f"rank {rank} is large for {rows} rows: the adapter can learn them by heart. Set tuning.rank {advised}, "
        "or give more rows."
    )


def rate_out_of_range(method: str, rate: float) -> str | None:
    low, high = RATE_RANGES[method]
    if low <= rate <= high:
        return None
    what = "low: the model hardly changes" if rate < low else "high: the loss often diverges"
    return f"learning rate {rate:g} is {what}. For {method} it is from {low:g} to {high:g}; set tuning.learning_rate."


def batch_out_of_range(batch: int, rows: int) -> str | None:
    """The effective batch: rows at a time x accumulation steps x devices."""
    low, high = BATCH_RANGE
    if batch > high:
        return (
            f"an effective batch of {batch} rows makes few steps of what the data has: set tuning.batch_size from "
            f"{low} to {high}."
        )
    if batch < low and rows >= low:
        return (
            f"an effective batch of {batch} rows gives noisy steps: set tuning.batch_size from {low} to {high}; "
            "accumulation takes no more memory."
        )
    return None


def targets_missed(shape: ModelShape, targets: str | Sequence[str] | None, trained: int) -> str | None:
    missed = shape.missed(targets)
    if not missed:
        return None
    return (
        f"target_modules {', '.join(missed)} are not in the base, and adapt nothing; {trained:,} parameters are "
        f"trained. The base has {', '.join(shape.leaves())}; all-linear means all of them."
    )


def attention_fallback(device: str, has_flash_attention: bool | None) -> str | None:
    """None for `has_flash_attention` where it is not known: a described machine."""
    if device == "cpu" or has_flash_attention is not False:
        return None
    return (
        "flash_attn is not installed: attention uses PyTorch's scaled_dot_product_attention. Batches of rows of "
        "unequal length then need a mask and repeated keys and values, which takes more memory and time with long rows."
    )


def few_rows(rows: int) -> str | None:
    if rows >= FEW_ROWS:
        return None
    return f"{rows} rows are few: collecting more of them (1,000 or more) improves the result more than any option."


def rows_cut(cut: int, examples: int, length: int) -> str | None:
    if cut == 0:
        return None
    return (
        f"{cut} of {examples} examples are longer than {length} tokens and are cut there; raise tuning.max_length, or "
        "split them."
    )


def warnings(
    resolved: Resolved,
    shape: ModelShape,
    *,
    rows: int,
    examples: int,
    cut: int,
    trained: int,
    device: str,
    has_flash_attention: bool | None,
) -> Iterator[tuple[str, str]]:
    """(code, text) of those that apply."""
    found = {
        "few_rows": few_rows(rows),
        "rank_too_large": rank_too_large(resolved.rank, rows),
        "learning_rate_out_of_range": rate_out_of_range(resolved.type, resolved.learning_rate),
        "batch_out_of_range": batch_out_of_range(resolved.batch_size, rows),
        "target_modules_missed": targets_missed(shape, resolved.target_modules, trained),
        "attention_fallback": attention_fallback(device, has_flash_attention),
        "rows_cut": rows_cut(cut, examples, resolved.max_length),
    }
    for code, text in found.items():
        if text is not None:
            yield code, text
