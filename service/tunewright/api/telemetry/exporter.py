"""Puts the metrics together when they are asked for.

What is counted in the event loop is copied there; all else, which may block, and the writing of the text, are done in
threads of their own, with limits: a hung engine, driver or database costs its own metrics and no others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from tunewright import __version__
from tunewright.api.gateway.proxy import Gateway
from tunewright.api.http.threads import Threads
from tunewright.api.telemetry import engines, families, machine, state
from tunewright.api.telemetry.counts import HttpCounts
from tunewright.api.telemetry.source import Source
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")
T = TypeVar("T")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' own format, which all of its versions read. Not OpenMetrics: prometheus_client 0.26 writes names with a
colon, which vLLM's have, in a form of it that cannot be read."""

_KEEPS = 3.0
"""Seconds for which what is read from the database, the engines and the driver is kept."""
_PAGE_KEEPS = 0.5
"""Seconds for which the whole text is kept: whoever asks more often gets the same."""
_DATABASE_LIMIT, _ENGINES_LIMIT, _GPUS_LIMIT, _PAGE_LIMIT = 4.0, 3.0, 3.0, 9.0
"""Seconds that are waited for each part. Prometheus waits for 10 s at most."""


class Exporter:
    """The metrics of one api process. Used from its event loop."""

    def __init__(
        self,
        gateway: Gateway,
        http: HttpCounts,
        store: Store,
        workspace: Workspace,
        *,
        most_names: int,
        keeps: float = _KEEPS,
        page_keeps: float = _PAGE_KEEPS,
    ) -> None:
        self._gateway = gateway
        self._http = http
        self._most_names = most_names
        self._threads = Threads("metrics", 4)  # as many as there are calls that may block
        self._state = Source(lambda: self._threads.run(state.read_state, store, workspace), keeps)
        self._gpus = Source(lambda: self._threads.run(machine.read_gpus), keeps)
        self._engines = Source(self._scrape, keeps)
        self._page = Source(self._write, page_keeps)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)

    async def page(self) -> bytes:
        """The text. Raises TimeoutError."""
        return await self._page.get(_PAGE_LIMIT)

    async def _write(self) -> bytes:
        asked_at = time.monotonic()
        parts = {
            "database": _DATABASE_LIMIT,
            "gpus": _GPUS_LIMIT,
            "engines": _DATABASE_LIMIT + _ENGINES_LIMIT,
        }
        found, gpus, scraped = await asyncio.gather(
            self._told("database", self._state, parts["database"]),
            self._told("gpus", self._gpus, parts["gpus"]),
            self._told("engines", self._engines, parts["engines"]),
        )
        if found is not None:
            self._gateway.counts.forget(found.figures.names, asked_at - 2 * _KEEPS - _DATABASE_LIMIT)
        lines = {
            name: (line.in_flight, line.waiting, line.running, line.places)
            for name, line in self._gateway.router.lines.items()
        }
        dropped = sum(self._gateway.shadow.dropped.values())
        success = dict(zip(parts, (found is not None, gpus is not None, scraped is not None), strict=True))
        series, http = self._gateway.counts.copy(), self._http.copy()

        def write() -> bytes:
            return generate_latest(_Families([
                *_of_service(success, dropped),
                *families.of_generations(series),
                *families.of_http(http),
                *families.of_lines(lines),
                *(state.of_state(found, self._most_names) if found is not None else ()),
                *machine.of_gpus(gpus or ()),
                *(scraped or ()),
                *self._process.collect(),
            ]))  # fmt: skip

        return await self._threads.run(write)

    async def _scrape(self) -> list[Metric]:
        known = await self._state.get(_DATABASE_LIMIT)
        scraped = await engines.scrape(known.figures.engines, self._gateway.engine)
        return await self._threads.run(engines.of_engines, scraped)  # 16 ms for each engine

    async def _told(self, part: str, source: Source[T], limit: float) -> T | None:
        """What a source says; None where it fails or takes too long, which the metrics tell."""
        try:
            return await source.get(limit)
        except Exception as error:
            log.warning("metrics: the part %s is missing: %s", part, error or type(error).__name__)
            return None


class _Families:
    """What prometheus_client writes."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_service(success: dict[str, bool], dropped: int) -> list[Metric]:
    return [
        families.gauge("build_info", "1, with the version of the service.", ("version",), [((__version__,), 1)]),
        families.gauge(
            "collector_success",
            "Whether a part of the metrics could be told.",
            ("part",),
            (((part,), float(is_told)) for part, is_told in success.items()),
        ),
        families.counter(
            "shadow_copies_dropped", "Copies for shadows that were not sent, since too many were in flight.", (),
            [((), dropped)],
        ),
    ]  # fmt: skip
