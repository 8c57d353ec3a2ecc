"""vLLM's own metrics, asked of each engine and passed on under the names that clients know.

An engine that hangs costs the time limit and is told as such; it never holds up the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tunewright.api.telemetry.families import gauge
from tunewright.engine.http import EngineError, EngineHTTP
from tunewright.store.records import Engine
from tunewright.store.states import EngineState

TIME_LIMIT = 2.0
"""Seconds in which an engine must tell its metrics."""
_PREFIX = "vllm:"
_LARGEST = 4 * 2**20
_LEFT_OUT = frozenset({"vllm:lora_requests_info"})
"""Its labels have lists of adapters: a series for each combination that ever ran, of names that nobody knows."""


@dataclass(frozen=True)
class Scraped:
    """The text of each engine that answered, by its name, and all that were asked."""

    texts: Mapping[str, str] = field(default_factory=dict)
    asked: Sequence[str] = ()


async def scrape(engines: Sequence[Engine], http: Callable[[str], EngineHTTP]) -> Scraped:
    """Ask all engines that are ready, at once. `http` has the connection to a socket."""
    ready = [one for one in engines if one.state is EngineState.READY and one.socket is not None]
    texts = await asyncio.gather(*(_ask(http(str(one.socket))) for one in ready))
    found = {one.name: text for one, text in zip(ready, texts, strict=True) if text is not None}
    return Scraped(found, [one.name for one in ready])


async def _ask(engine: EngineHTTP) -> str | None:
    try:
        async with asyncio.timeout(TIME_LIMIT):
            answer = await engine.request("GET", "/metrics")
    except (EngineError, OSError):  # TimeoutError is an OSError
        return None
    return answer if isinstance(answer, str) and len(answer) <= _LARGEST else None


def of_engines(scraped: Scraped) -> list[Metric]:
    """vLLM's families, each with the samples of all engines, and whether each engine told them."""
    merged: dict[str, Metric] = {}
    told = dict.fromkeys(scraped.asked, False)
    for name, text in scraped.texts.items():
        try:
            families = [
                _renamed(one, name) for one in text_string_to_metric_families(text) if _is_passed_on(one)
            ]
        except ValueError:
            continue
        told[name] = True
        for family in families:
            first = merged.setdefault(family.name, family)
            if first is not family and first.type == family.type:
                first.samples.extend(family.samples)
    up = gauge(
        "engine_metrics_up",
        f"Whether a ready engine has told its own metrics within {TIME_LIMIT:g} s.",
        ("engine",),
        (((name,), float(is_up)) for name, is_up in told.items()),
    )
    return [up, *merged.values()]


def _is_passed_on(family: Metric) -> bool:
    return (
        family.name.startswith(_PREFIX)
        and family.name not in _LEFT_OUT
        and not family.name.endswith("_created")
    )


def _renamed(family: Metric, name: str) -> Metric:
    """The family with the engine's public name in the place of its internal one."""
    family.samples = [one._replace(labels={**one.labels, "model_name": name}) for one in family.samples]
    return family
