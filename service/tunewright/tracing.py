"""OpenTelemetry traces of the api and the scheduler, which `--otlp-endpoint` turns on.

Owns the only use of the package `opentelemetry`, which is imported when tracing is on and not before. While it is off,
`span` and the like return one object that does nothing. Spans are queued in memory, at most 2048 of them, and a thread
sends them: a receiver that is down or slow costs spans, and nothing else (docs/decisions/0055).

The standard variables OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_* and
OTEL_EXPORTER_OTLP_* beside the endpoint are read by the package itself. Spans never have texts of requests or answers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

PATH = "/v1/traces"
"""Behind the endpoint, as OTEL_EXPORTER_OTLP_ENDPOINT has it too."""
PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
PACKAGES_OF_VLLM = (*PACKAGES, "opentelemetry.exporter.otlp.proto.grpc")
"""vLLM imports all of these before it sends a span, by whichever protocol."""

Attributes = Mapping[str, str | int | float | bool | None]
"""Those that are None are left out."""


class Span(Protocol):
    """What has a beginning and an end. `trace_id`: 32 hexadecimal digits, empty where nothing is recorded."""

    trace_id: str

    def set(self, attributes: Attributes) -> None: ...
    def rename(self, name: str) -> None: ...
    def event(self, name: str, attributes: Attributes | None = None) -> None: ...
    def fail(self, why: str) -> None: ...
    def headers(self) -> dict[str, str]:
        """The headers `traceparent` and `tracestate` of a request that belongs to this span."""
        ...


class _NoSpan:
    trace_id = ""

    def __bool__(self) -> bool:
        return False

    def set(self, attributes: Attributes) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        pass

    def fail(self, why: str) -> None:
        pass

    def headers(self) -> dict[str, str]:
        return {}


NO_SPAN = _NoSpan()
_NOTHING: AbstractContextManager[Span] = nullcontext(NO_SPAN)


class _Recorded:
    """One of the package's, which does nothing where the trace is not sampled: the engine has to learn that too."""

    def __init__(self, span: Any) -> None:
        self._span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_present(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, _present(attributes or {}))

    def fail(self, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, why))
        self._span.set_attribute("error.type", why)

    def headers(self) -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context

        return _headers_in(set_span_in_context(self._span))


class Tracer:
    """Makes spans, and sends them with an exporter."""

    def __init__(self, exporter: SpanExporter, process: str) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        from tunewright import __version__

        class Ids(RandomIdGenerator):
            """Random ids, but for one span whose ids were given."""

            given: tuple[int, int] | None = None

            def generate_trace_id(self) -> int:
                return self.given[0] if self.given else super().generate_trace_id()

            def generate_span_id(self) -> int:
                return self.given[1] if self.given else super().generate_span_id()

        named = {"service.name": "tunewright", "service.version": __version__, "tunewright.process": process}
        self._ids = Ids()
        # what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes over it
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        # No global provider: libraries that look for one do not begin to make spans of their own.
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tunewright", __version__)

    @contextmanager
    def current(
        self, name: str, context: Context | None, attributes: Attributes | None, kind: str
    ) -> Iterator[Span]:
        """A span that those begun within the block, in the same task, belong to."""
        from opentelemetry.trace import SpanKind, use_span

        span = self._tracer.start_span(
            name, context, SpanKind[kind], _present(attributes or {}), record_exception=False
        )
        recorded = _Recorded(span)
        try:
            # Errors are told by their code alone: a message may quote the request.
            with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield recorded
        except Exception as error:
            recorded.fail(str(getattr(error, "code", None) or type(error).__name__))
            raise
        finally:
            span.end()

    def job(self, job_id: str) -> JobTrace:
        return JobTrace(self._tracer, self._ids, self._provider.sampler, job_id)

    def stop(self, seconds: float) -> None:
        """Send what is queued, for so many seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(seconds)


class JobTrace:
    """The trace of a job, whose ids are made of the job's: a scheduler that is started again goes on with it. Its first
    span has the whole job and comes last; the others belong to it. Times are in Unix seconds."""

    def __init__(self, tracer: Any, ids: Any, sampler: Any, job_id: str) -> None:
        from opentelemetry.sdk.trace.sampling import Decision

        digest = hashlib.sha256(job_id.encode()).digest()
        self._ids = ids
        self._own = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
        self._tracer = tracer
        # What is told of the parts is told of the whole, whatever OTEL_TRACES_SAMPLER is.
        decided = sampler.should_sample(None, self._own[0], "job").decision
        self._is_sampled = decided is Decision.RECORD_AND_SAMPLE
        self.trace_id = f"{self._own[0]:032x}"

    def begin(self, name: str, at: float, attributes: Attributes, within: Any = None) -> Any:
        """A part of the job, or of a part; `finish` ends it."""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        if within is None:
            flags = TraceFlags(TraceFlags.SAMPLED if self._is_sampled else TraceFlags.DEFAULT)
            within = NonRecordingSpan(SpanContext(*self._own, is_remote=True, trace_flags=flags))
        context = set_span_in_context(within)
        return self._tracer.start_span(
            name, context, attributes=_present(attributes), start_time=_nanoseconds(at)
        )

    def finish(
        self, part: Any, at: float, attributes: Attributes | None = None, failed: str | None = None
    ) -> None:
        part.set_attributes(_present(attributes or {}))
        if failed is not None:
            _Recorded(part).fail(failed)
        part.end(_nanoseconds(at))

    def whole(
        self,
        began: float,
        ended: float,
        attributes: Attributes,
        failed: str | None,
        asked_by: Mapping[str, str],
    ) -> None:
        """The whole job, linked to the request that asked for it, which had these headers."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, get_current_span

        context = get_current_span(_context_in(asked_by)).get_span_context()
        links = [Link(context, {"tunewright.link": "created_by"})] if context.is_valid else None
        self._ids.given = self._own
        try:
            span = self._tracer.start_span(
                "job", Context(), attributes=_present(attributes), links=links, start_time=_nanoseconds(began)
            )
        finally:
            self._ids.given = None
        self.finish(span, ended, failed=failed)


_tracer: Tracer | None = None


def missing_packages(names: tuple[str, ...] = PACKAGES) -> str | None:
    """The first of these modules that is not installed; None where all are. Imports none of them but their parents."""
    for name in names:
        with suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name) is not None:
                continue
        return name
    return None


def start(endpoint: str | None, process: str, exporter: SpanExporter | None = None) -> None:
    """Trace what this process does, where there is an endpoint; else it stays off. `exporter` replaces that of OTLP."""
    global _tracer
    if endpoint is None:
        return
    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
    _tracer = Tracer(exporter, process)


def stop(seconds: float = 1.0) -> None:
    """Send what is queued, within so many seconds, and trace no more."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.stop(seconds)


def traces_url(endpoint: str) -> str:
    return endpoint.rstrip("/") + PATH


def is_on() -> bool:
    return _tracer is not None


def request(name: str, headers: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[Span]:
    """The span of a request with these headers: that of the client's trace, where they name one."""
    if _tracer is None:
        return _NOTHING
    return _tracer.current(name, _context_in(headers), attributes, "SERVER")


def span(
    name: str, attributes: Attributes | None = None, kind: str = "INTERNAL"
) -> AbstractContextManager[Span]:
    """A part of the current request. Outside of requests, nothing."""
    if _tracer is None or not current():
        return _NOTHING
    return _tracer.current(name, None, attributes, kind)


def current() -> Span:
    """The span that this task is in; false where it is in none."""
    if _tracer is None:
        return NO_SPAN
    from opentelemetry.trace import get_current_span

    found = get_current_span()
    return _Recorded(found) if found.get_span_context().is_valid else NO_SPAN


def job(job_id: str) -> JobTrace | None:
    """None where tracing is off."""
    return _tracer.job(job_id) if _tracer is not None else None


def _context_in(headers: Mapping[str, str]) -> Context:
    """The trace that `traceparent` and `tracestate` name; an empty one where they name none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: value for name in ("traceparent", "tracestate") if (value := headers.get(name))}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _headers_in(context: Context) -> dict[str, str]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, context)
    return headers


def _present(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
