"""Warnings of a plan: options that rarely do what was meant. Each is a pure function that returns a text or None.

The numbers are those of docs/reference/training-pitfalls.md, which lists all pitfalls and what guards each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunewright.plan.defaults import BATCH_RANGE, Resolved, rank_for
from tunewright.plan.methods import FEW_ROWS, GOOD_TO_BAD, METHODS
from tunewright.plan.shape import ModelShape

PADDING_LIMIT = 0.4
"""Share of padding above which grouping by length is worth its change of order."""
HEAD_NOT_TRAINED = (
    "the output head (lm_head) cannot be a target module: no method trains an adapter on it, since the loss multiplies "
    "with the head's own weights; leave it out, all-linear does"
)
"""TRL refuses it too."""
WAIT_LIMIT = 0.1
"""Share of the time of steps that they may wait for rows."""


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


def rate_out_of_range(type: str, rate: float, method: str = "supervised") -> str | None:
    low, high = METHODS[method].rate_ranges[type]
    what_for = type if method == "supervised" else f"{type} by {method}"
    if low <= rate <= high:
        return None
    what = "low: the model hardly changes" if rate < low else "high: the loss often diverges"
    return f"learning rate {rate:g} is {what}. For {what_for} it is from {low:g} to {high:g}; set tuning.learning_rate."


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
        "flash_attn is not installed: attention uses PyTorch's scaled_dot_product_attention, whose kernels for causal "
        "attention are of the same kind, since batches need no mask. A mixture of experts whose router has a loss "
        "keeps the mask, and takes more memory and time with long rows: install flash_attn for it."
    )


def few_rows(rows: int) -> str | None:
    if rows >= FEW_ROWS:
        return None
    return f"{rows} rows are few: collecting more of them (1,000 or more) improves the result more than any option."


def rows_cut(cut: int, examples: int, length: int) -> str | None:
    if cut == 0:
        return None
    return (
        f"{cut} of {examples} examples are longer than {length} tokens and are cut there; raise tuning.max_length "
        "where the base's context allows it, or split them."
    )


def prompts_too_long(number: int, longest: int) -> str | None:
    """Prompts are not cut: half a question asks something else."""
    if number == 0:
        return None
    return (
        f"{number} prompts are longer than the {longest} tokens that tuning.max_completion_length leaves of "
        "tuning.max_length, and a job on them is refused: shorten them, raise tuning.max_length, or lower "
        "tuning.max_completion_length."
    )


def time_depends_on_answers(resolved: Resolved) -> str | None:
    """What a plan leaves out where answers are made while it trains."""
    if not METHODS[resolved.method].generates:
        return None
    return (
        f"the time is not predicted, since it depends on how long the answers become that {resolved.method} makes. "
        f"Memory counts answers of {resolved.max_completion_length} tokens, and the keys and values of all "
        f"{resolved.device_batch_size * (resolved.num_generations or 1)} that are made for a step."
    )


def rows_padded(padding: float, grouped: bool) -> str | None:
    """Many batches have a long row among short ones."""
    if grouped or padding <= PADDING_LIMIT:
        return None
    return (
        f"about {padding:.0%} of what batches compute is padding, since few rows are much longer than most: set "
        "tuning.group_by_length true, so that batches are of rows of about one length, or a smaller tuning.max_length."
    )


def labels_unbalanced(good: int, bad: int, desirable: float, undesirable: float) -> str | None:
    """Of labelled rows: answers of each label, and the weights of their losses."""
    if not good or not bad:
        which = "good" if good else "bad"
        return (
            f"all {good or bad} answers are {which}, so that the model learns from what is {which} alone: give rows of "
            "both labels, or lower the learning rate."
        )
    low, high = GOOD_TO_BAD
    share = good * desirable / (bad * undesirable)
    if low <= round(share, 2) <= round(high, 2):
        return None
    if share < low:
        more, option, weight = "bad", "desirable_weight", bad / good * undesirable
    else:
        more, option, weight = "good", "undesirable_weight", good / bad * desirable
    return (
        f"{good} answers are good and {bad} are bad: with these weights the {more} ones count "
        f"{max(share, 1 / share):.1f} times as much. Set tuning.{option} {weight:.3g}, and both count alike."
    )


def merge_changes_type(dtype: str, method: str) -> str | None:
    """The type of the base's weights, as safetensors names it."""
    if method == "full" or dtype == "BF16":
        return None
    return (
        f"the base's weights are {dtype}, and a merge of the adapter is written in bfloat16, as its config.json then "
        "says; what that rounds is measured by the export, which refuses it beyond max_kl. To avoid it, serve the "
        "adapter without merging it, or train on the base's bfloat16 version."
    )


def loader_blocks(waited: float, seconds: float, workers: int) -> str | None:
    """Seconds that steps have waited for rows, of the seconds that they took."""
    if waited <= WAIT_LIMIT * seconds:
        return None
    return (
        f"steps wait {waited / seconds:.0%} of their time for rows, with {workers} processes that read them: set "
        f"tuning.dataloader_workers {2 * workers or 2}, or put the data folder on a faster disk."
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
    padding: float = 0.0,
) -> Iterator[tuple[str, str]]:
    """(code, text) of those that apply."""
    answers = resolved.num_generations or 1
    generates = METHODS[resolved.method].generates
    longest = resolved.max_length - (resolved.max_completion_length or 0)
    found = {
        "few_rows": few_rows(rows),
        "rank_too_large": rank_too_large(resolved.rank, rows),
        "learning_rate_out_of_range": rate_out_of_range(
            resolved.type, resolved.learning_rate, resolved.method
        ),
        "batch_out_of_range": batch_out_of_range(resolved.batch_size * answers, rows * answers),
        "target_modules_missed": targets_missed(shape, resolved.target_modules, trained),
        "attention_fallback": attention_fallback(device, has_flash_attention),
        "rows_cut": None if generates else rows_cut(cut, examples, resolved.max_length),
        "prompts_too_long": prompts_too_long(cut, longest) if generates else None,
        "rows_padded": rows_padded(padding, resolved.group_by_length or resolved.packing),
        "merge_changes_type": merge_changes_type(shape.dtype, resolved.type),
    }
    for code, text in found.items():
        if text is not None:
            yield code, text
