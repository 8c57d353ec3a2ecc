"""`tunewright bench`: times, tokens and the price of answers under stated loads, of models side by side."""

from __future__ import annotations

import click

from tunewright.cli.job_commands import EVALUATIONS
from tunewright.cli.options import Remote, examples, on_service
from tunewright.cli.output import Output, size
from tunewright.cli.watch import watch_to_the_end
from tunewright_client.types import LatencyPercentiles, LoadFigures


@click.command(
    epilog=examples(
        "tunewright bench tunewright-tiny",
        "tunewright bench ft:qwen:support:Zk3mP0aY ft:qwen:support:merged ft:qwen:support:awq --load 1 --load 32",
        "tunewright bench qwen --prompt-tokens 1024 --answer-tokens 256 --requests 500 --json",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--load", "loads", multiple=True, type=click.IntRange(1, 1024),
    help="Requests in flight at a time; may be repeated. Default: 1, and a quarter of what the engine runs at once.",
)  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(1), help="Of each request. Default: 128.")
@click.option("--answer-tokens", type=click.IntRange(1), help="Of each answer. Default: 128.")
@click.option(
    "--requests", type=click.IntRange(1, 10_000), help="Of each load. Default: 100, which P99 needs at least."
)
@click.option("--seed", type=click.IntRange(0), help="Of the intervals.")
@on_service
def bench(
    remote: Remote,
    *,
    models: tuple[str, ...],
    loads: tuple[int, ...],
    prompt_tokens: int | None,
    answer_tokens: int | None,
    requests: int | None,
    seed: int | None,
) -> int:
    """Measure what answers of models cost: the time to the first token, between tokens and of the whole, tokens in a
    second and, where the service knows the price of an hour, that of a million tokens.

    It is an evaluation, which queues and can be watched, paused and cancelled as others. Models are bases, adapters,
    deployed models, or aliases.
    """
    asked = {
        "at_once": list(loads) or None,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "requests": requests,
    }
    evaluation = remote.client.evaluations.create(
        models[0],
        against=models[1:],
        metrics="latency",
        load={key: value for key, value in asked.items() if value is not None},
        seed=seed,
    )
    if remote.out.as_json:
        return watch_to_the_end(remote, EVALUATIONS, evaluation.id)
    remote.out.note(evaluation.id)
    if code := watch_to_the_end(remote, EVALUATIONS, evaluation.id):
        return code
    report = remote.client.evaluations.retrieve(evaluation.id).report
    print_loads(remote.out, report.loads or [] if report is not None else [])
    return 0


def print_loads(out: Output, loads: list[LoadFigures]) -> None:
    """A table with a line for each model and load; times in milliseconds, P50 and P99."""
    has_price = any(load.price_per_million_tokens is not None for load in loads)
    has_memory = any(load.device_memory_bytes is not None for load in loads)
    columns = ["MODEL", "AT ONCE", "TOKENS/S", "FIRST TOKEN MS", "BETWEEN MS", "WHOLE MS", "FAILED"]
    columns += ["PER MILLION TOKENS"] if has_price else []
    columns += ["GPU MEMORY"] if has_memory else []
    out.table(columns, [_row(load, has_price, has_memory) for load in loads])


def _row(load: LoadFigures, has_price: bool, has_memory: bool) -> tuple[object, ...]:
    low, high = load.tokens_per_second_low, load.tokens_per_second_high
    between = f" ({low:.1f} to {high:.1f})" if low is not None and high is not None else ""
    price = load.price_per_million_tokens
    return (
        load.model,
        load.at_once,
        f"{load.tokens_per_second:.1f}{between}",
        *(_times(one) for one in (load.first_token, load.between_tokens, load.whole)),
        load.failed or None,
        *((f"{price:.4g} {load.currency}" if price is not None else None,) if has_price else ()),
        *((size(load.device_memory_bytes),) if has_memory else ()),
    )


def _times(found: LatencyPercentiles | None) -> str | None:
    return f"{found.p50:.1f}, {found.p99:.1f}" if found is not None else None
