"""OpenTelemetry traces, where they are configured: one span for each stage of a request. Else nothing is imported.

The spans of a request hang on its own span, which a context variable holds, and not on one another: a stage of an async
generator may end in another context than it began in.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from router_backend import __version__
from router_backend.types import Chunk

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from router_backend.settings import Settings

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_tracer: Tracer | None = None
_request: ContextVar[Span | None] = ContextVar("request span", default=None)


def configure(settings: Settings, exporter: SpanExporter | None = None) -> None:
    """Sends traces to `OTEL_EXPORTER_OTLP_ENDPOINT`, or to `exporter`; off where neither is.

    Raises:
        SettingsError: the extra `otel` is not installed.
    """
    global _tracer
    if exporter is None and not settings.otel_exporter_otlp_endpoint:
        _tracer = None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError:
        from router_backend.errors import SettingsError

        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'router-backend[otel]'"
        ) from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": settings.otel_service_name, "service.version": __version__})
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        address = str(settings.otel_exporter_otlp_endpoint).rstrip("/")
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces")))
    _tracer = provider.get_tracer("router_backend", __version__)


def begin_request(method: str, traceparent: str) -> tuple[Span | None, str]:
    """The request's own span, and the id of its trace. End the span.

    It is a child of the client's, by W3C's header. Where traces are off there is no span, and the id is the client's.
    """
    if _tracer is None:
        _request.set(None)
        found = _TRACEPARENT.fullmatch(traceparent)
        return None, found[1] if found else ""
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    span = _tracer.start_span(method, parent, SpanKind.SERVER)
    _request.set(span)
    return span, f"{span.get_span_context().trace_id:032x}"


def end_request(span: Span, name: str, attributes: Mapping[str, Any]) -> None:
    span.update_name(name)
    for key, value in attributes.items():
        span.set_attribute(key, value)
    if int(attributes.get("http.response.status_code", 0)) >= 500:
        _fail(span, "")
    span.end()


@contextlib.contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span | None]:  # noqa: ANN401 - as OpenTelemetry takes them
    """A stage of the request at hand. An error that leaves it is noted by its class alone."""
    parent = _request.get()
    if _tracer is None or parent is None:
        yield None
        return
    from opentelemetry.trace import set_span_in_context

    stage = _tracer.start_span(name, set_span_in_context(parent), attributes=attributes)
    try:
        yield stage
    except Exception as error:
        _fail(stage, type(error).__name__)
        raise
    finally:
        stage.end()


def stages(parent: Span | None, last: Chunk) -> None:
    """Prefill and decode, as the engine measured them: one after the other, up to now."""
    if _tracer is None or parent is None:
        return
    from opentelemetry.trace import set_span_in_context

    timings, usage = last.timings, last.usage
    end = time.time_ns()
    middle = end - int(1e9 * timings.decode_seconds)
    start = middle - int(1e9 * timings.prefill_seconds)
    where = set_span_in_context(parent)
    tokens = {"gen_ai.usage.input_tokens": usage.prompt_tokens, "router.cached_tokens": usage.cached_tokens}
    _tracer.start_span("prefill", where, attributes=tokens, start_time=start).end(middle)
    tokens = {"gen_ai.usage.output_tokens": usage.completion_tokens, "router.forward_passes": timings.forward_passes}
    _tracer.start_span("decode", where, attributes=tokens, start_time=middle).end(end)


def _fail(span: Span, why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, why))
