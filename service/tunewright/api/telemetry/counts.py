"""What the api process counts of the requests that it answers. Plain numbers without locks: used from the serving event
loop only, since each event of a stream is counted (docs/decisions/0050).

A label has the name of a model or alias only where these exist: text of a request never becomes one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from time import monotonic

from tunewright.api.gateway.usage import FINISHED, USAGE, unfinished, usage_of, usage_of_end, without_usage

OTHER = "_other"
"""Stands for the names beyond the limit. No model and no alias can be named so: names begin with a letter or digit."""
LEFT = 499
"""The status of a request whose client disconnected before the end of the answer (as nginx logs it)."""
FAILED = 500

FIRST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
GENERATION_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
HTTP_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_DONE = b"data: [DONE]\n\n"
_USUAL = (b"}]}\n\n", b'}],"usage":null}\n\n')
"""How the events of a stream end that have a choice and no usage: nearly all."""
_ENDED_BY_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})


class Histogram:
    """Observations by bucket; a bound belongs to the bucket below it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def copy(self) -> Histogram:
        new = Histogram(self.bounds)
        new.counts, new.sum = self.counts.copy(), self.sum
        return new


class Series:
    """The generations of one model, as asked for by one alias (empty where the model itself was)."""

    __slots__ = (
        "alias", "between", "first", "generated", "model", "prompts", "requests", "running", "seconds", "used_at",
    )  # fmt: skip

    def __init__(self, model: str, alias: str) -> None:
        self.model = model
        self.alias = alias
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.seconds = Histogram(GENERATION_SECONDS)
        self.first = Histogram(FIRST_SECONDS)
        self.between = Histogram(BETWEEN_SECONDS)
        self.prompts = self.generated = 0
        """Tokens."""
        self.running = 0
        self.used_at = 0.0

    def copy(self) -> Series:
        new = Series(self.model, self.alias)
        new.requests = self.requests.copy()
        new.seconds, new.first, new.between = self.seconds.copy(), self.first.copy(), self.between.copy()
        new.prompts, new.generated, new.running = self.prompts, self.generated, self.running
        return new


class Counts:
    """The series of all models: at most `most`, and one for all further ones."""

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._series: dict[tuple[str, str], Series] = {}
        self._others = {alias: Series(OTHER, alias) for alias in ("", OTHER)}
        self._unknown = Series("", "")
        """Of requests that failed before it was known that their model exists."""

    def begin(self, route: str) -> Generation:
        return Generation(self, route)

    def of(self, model: str, alias: str) -> Series:
        """The series of a model that exists."""
        if not model:
            return self._unknown
        found = self._series.get((model, alias))
        if found is None:
            if len(self._series) >= self._most:
                return self._others[OTHER if alias else ""]
            found = self._series[model, alias] = Series(model, alias)
        return found

    def forget(self, names: Collection[str], since: float) -> None:
        """Make room, where all series are taken, by dropping those not used `since` (monotonic) of which a name exists
        no more: `names` are all that there were at that time."""
        if len(self._series) < self._most:
            return
        for key, series in list(self._series.items()):
            gone = series.model not in names or (series.alias and series.alias not in names)
            if gone and not series.running and series.used_at < since:
                del self._series[key]

    def copy(self) -> list[Series]:
        """All series that were used, as they are now."""
        every = (*self._series.values(), *self._others.values(), self._unknown)
        return [one.copy() for one in every if one.requests or one.running]


class Generation:
    """One request, from its arrival to its end."""

    __slots__ = (
        "_began", "_between", "_counts", "_ended", "_held", "_last", "_route", "_series", "_tokens", "_usage",
        "hides_usage", "is_whole",
    )  # fmt: skip

    def __init__(self, counts: Counts, route: str) -> None:
        self._counts = counts
        self._route = route
        self._began = monotonic()
        self._series: Series | None = None
        self._between: Histogram | None = None
        """Where the times of further tokens are counted, once the first has come."""
        self._last = 0.0
        self._tokens = -1 if route == "/v1/chat/completions" else 0
        """Tokens that were seen to be sent. The first event of a chat has the role and no token."""
        self._usage: tuple[int, int] | None = None
        self._ended = False
        self._held = b""
        """The end of a choice, until the next event has come."""
        self.is_whole = False
        """The answer has come in one piece."""
        self.hides_usage = False
        """The usage was asked for by the gateway, not by the client, who does not get it."""

    @property
    def has_token(self) -> bool:
        """Whether the first token of a stream was counted."""
        return self._last > 0.0

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the answer, once the engine has told them."""
        return self._usage

    @property
    def tokens(self) -> int:
        """Tokens of a stream that were seen until now."""
        return max(0, self._tokens)

    def named(self, model: str, alias: str) -> None:
        """It is known which model answers, and that it exists."""
        self._series = self._counts.of(model, alias)
        self._series.running += 1

    def part(self, events: bytes) -> bytes:
        """Count whole events of a stream, which have just arrived. Returns what the client gets of them."""
        now = monotonic()
        between = self._between
        if (
            between is None
            or not events.endswith(_USUAL)
            or (self.hides_usage and (self._held or FINISHED in events))
        ):
            return self._unusual(events, now)
        # as `Histogram.observe`, written out for what each event passes
        tokens = events.count(b"\n") // 2  # a JSON text has none
        gap = now - self._last
        between.counts[bisect_left(BETWEEN_SECONDS, gap / tokens)] += tokens
        between.sum += gap
        self._tokens += tokens
        self._last = now
        return events

    def _unusual(self, events: bytes, now: float) -> bytes:
        """As `part`, for the first events and the last, and for all of routes that have others than tokens."""
        if self._route in _ENDED_BY_DONE:
            tokens = events.count(b"\n\n") - events.endswith(_DONE)
        else:
            tokens = events.count(b".delta\n")  # the line of an event's type, as response.output_text.delta
        if self.hides_usage:
            events, self._held = self._held + events, b""
        if USAGE in events and self._route not in _ENDED_BY_DONE:
            self._usage = usage_of_end(events) or self._usage
        elif USAGE in events:
            self._usage = usage_of(events)
            without, found = without_usage(events)
            tokens -= found
            if self.hides_usage:
                events = without
        elif self.hides_usage:
            events, self._held = unfinished(events)
        if tokens > 0:
            self._count(tokens, now)
        return events

    def _count(self, tokens: int, now: float) -> None:
        series = self._series
        before = self._tokens
        self._tokens += tokens
        if series is None or self._tokens <= 0:
            return
        if before <= 0:
            series.first.observe(now - self._began)
            tokens = self._tokens - 1
            if tokens:
                series.between.observe(0.0, tokens)
            if self._route in _ENDED_BY_DONE:
                self._between = series.between
        else:
            series.between.observe((now - self._last) / tokens, tokens)
        self._last = now

    def whole(self, answer: bytes) -> None:
        """Count an answer that is not streamed."""
        self._usage = usage_of(answer)
        self.is_whole = True

    def end(self, status: int) -> None:
        """The request has ended. What was told first stays."""
        if self._ended:
            return
        self._ended = True
        series = self._series
        if series is None:
            series = self._counts.of("", "")
        else:
            series.running -= 1
        now = monotonic()
        series.used_at = now
        series.requests[self._route, status] += 1
        series.seconds.observe(now - self._began)
        prompt, generated = self._usage or (0, max(0, self._tokens))
        series.prompts += prompt
        series.generated += generated


class HttpCounts:
    """All requests over HTTP, by route: its template, not the path."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """By method, route and status."""
        self.seconds: dict[tuple[str, str], Histogram] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        if method not in _METHODS:
            method = ""
        self.requests[method, route, status] += 1
        found = self.seconds.get((method, route))
        if found is None:
            found = self.seconds[method, route] = Histogram(HTTP_SECONDS)
        found.observe(seconds)

    def copy(self) -> HttpCounts:
        new = HttpCounts()
        new.requests = self.requests.copy()
        new.seconds = {key: one.copy() for key, one in self.seconds.items()}
        return new
