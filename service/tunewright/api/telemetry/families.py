"""Metric families: what is exported, with names, units and help as Prometheus has them (base units, `_total` for
counters). The tables of docs/how-to/monitor.md have the same names, which a test compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from tunewright.api.telemetry.counts import Histogram, HttpCounts, Series

PREFIX = "tunewright_"
Labels = tuple[str, ...]


def counter(name: str, help: str, labels: Labels, values: Iterable[tuple[Sequence[object], float]]) -> Metric:
    """`name` without its `_total`. Each value has those of its labels."""
    family = CounterMetricFamily(PREFIX + name, help, labels=labels)
    for of, value in values:
        family.add_metric([str(one) for one in of], value)
    return family


def gauge(
    name: str, help: str, labels: Labels, values: Iterable[tuple[Sequence[object], float | None]]
) -> Metric:
    """What is None is left out."""
    family = GaugeMetricFamily(PREFIX + name, help, labels=labels)
    for of, value in values:
        if value is not None:
            family.add_metric([str(one) for one in of], value)
    return family


def histogram(
    name: str, help: str, labels: Labels, values: Iterable[tuple[Sequence[str], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, help, labels=labels)
    for of, found in values:
        totals = accumulate(found.counts)
        bounds = [*(str(bound) for bound in found.bounds), "+Inf"]
        family.add_metric(of, list(zip(bounds, totals, strict=True)), found.sum)
    return family


def of_generations(series: Sequence[Series]) -> list[Metric]:
    """What clients asked models for."""
    labels = ("model", "alias")
    keyed = [((one.model, one.alias), one) for one in series]
    named = [(key, one) for key, one in keyed if one.model]
    return [
        counter(
            "requests",
            "Generations that have ended, by the model that answered, the alias that was asked for, the route, and the "
            "HTTP status (499: the client left; a stream that broke off has the status of its error).",
            (*labels, "route", "code"),
            (
                ((*key, route, code), number)
                for key, one in keyed
                for (route, code), number in one.requests.items()
            ),
        ),
        gauge(
            "requests_in_flight",
            "Generations that have not ended, with those that wait.",
            labels,
            ((key, one.running) for key, one in named),
        ),
        histogram(
            "request_duration_seconds",
            "Time from a generation's request to its end.",
            labels,
            ((key, one.seconds) for key, one in named),
        ),
        histogram(
            "time_to_first_token_seconds",
            "Time from the request to the first token of a streamed answer.",
            labels,
            ((key, one.first) for key, one in named),
        ),
        histogram(
            "time_between_tokens_seconds",
            "Time from one token of a streamed answer to the next.",
            labels,
            ((key, one.between) for key, one in named),
        ),
        counter(
            "prompt_tokens",
            "Tokens of the prompts of generations that have ended.",
            labels,
            ((key, one.prompts) for key, one in named),
        ),
        counter(
            "generated_tokens",
            "Tokens of the answers of generations that have ended; of those that broke off, what was seen of them.",
            labels,
            ((key, one.generated) for key, one in named),
        ),
    ]


def of_http(counts: HttpCounts) -> list[Metric]:
    """What was answered on all routes."""
    return [
        counter(
            "http_requests",
            "Requests that have ended, by method, route (empty where there is none) and status.",
            ("method", "route", "code"),
            counts.requests.items(),
        ),
        histogram(
            "http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ("method", "route"),
            counts.seconds.items(),
        ),
    ]


def of_lines(lines: Mapping[str, tuple[int, int, int, int]]) -> list[Metric]:
    """The queues in front of the engines: requests in flight and waiting, sequences running, and their places."""
    told = (
        ("engine_requests_in_flight", "Requests at an engine and in the queue in front of it."),
        (
            "engine_requests_waiting",
            "Requests in the queue in front of an engine, which wait for their turn.",
        ),
        ("engine_sequences_running", "Sequences that were given to an engine."),
        ("engine_sequence_places", "Sequences that an engine runs at once."),
    )
    return [
        gauge(name, help, ("engine",), (((engine,), four[place]) for engine, four in lines.items()))
        for place, (name, help) in enumerate(told)
    ]
