"""OpenTelemetry: a trace of each episode, its phases as spans, to a collector (OTLP over HTTP).

A batch that the collector does not take is lost there, and one warning. Headers and certificates come from
the exporter's own variables (OTEL_EXPORTER_OTLP_HEADERS, …).
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from rl.trackers.tracker import Ended, Episode, News, RunFacts, say

# Spans in one request, and seconds that it may take with all its tries.
BATCH, EXPORT_SECONDS = 512, 10


class OtelTracker:
    """Sends the spans of one run's episodes."""

    hears = frozenset({Episode})

    def __init__(self, run: RunFacts) -> None:
        endpoint = run.trackers.otel.endpoint.rstrip("/")
        self._exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=EXPORT_SECONDS)
        self._made = InMemorySpanExporter()
        resource = Resource.create({"service.name": "dorado", "dorado.run": run.name})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._made))
        self._tracer = provider.get_tracer("dorado")
        self._endpoint = endpoint
        self._warned = False

    def take(self, news: News) -> None:
        """Make the spans of an episode, and send them once there are enough."""
        if isinstance(news, Episode):
            self._trace(news)
            if len(self._made.get_finished_spans()) >= BATCH:
                self._send()

    def look(self) -> None:
        """Send what there is."""
        self._send()

    def end(self, ended: Ended) -> None:
        """Send the rest."""
        self._send()
        self._exporter.shutdown()

    def _trace(self, episode: Episode) -> None:
        record = episode.record
        attributes: dict[str, str | int | float] = {
            "dorado.trajectory": record.id,
            "dorado.env": episode.env,
            "dorado.split": episode.split,
            "dorado.group": record.group,
            "dorado.task": record.task_id,
            "dorado.outcome": episode.outcome,
            "dorado.stop_reason": record.stop_reason,
            "dorado.versions": episode.versions,
            "dorado.turns": episode.turns,
            "dorado.tokens": episode.tokens,
        }
        if record.reward is not None:
            attributes["dorado.reward"] = record.reward
        attributes |= {f"dorado.reward.{name}": value for name, value in record.rewards}
        phases = record.phases
        start = min((phase.start for phase in phases), default=episode.start)
        end = max((phase.start + phase.seconds for phase in phases), default=start)
        span = self._tracer.start_span(
            "episode", start_time=_nanoseconds(start), attributes=attributes
        )
        if record.fault:
            span.set_status(Status(StatusCode.ERROR, record.fault[:300]))
        context = set_span_in_context(span)
        for phase in phases:
            inner = self._tracer.start_span(
                phase.name, context, start_time=_nanoseconds(phase.start)
            )
            inner.end(_nanoseconds(phase.start + phase.seconds))
        span.end(_nanoseconds(end))

    def _send(self) -> None:
        spans: tuple[ReadableSpan, ...] = self._made.get_finished_spans()
        self._made.clear()
        for first in range(0, len(spans), BATCH):
            sent = self._exporter.export(spans[first : first + BATCH])
            if sent is not SpanExportResult.SUCCESS and not self._warned:
                self._warned = True
                say(f"{self._endpoint} does not take spans; those are lost, the next are tried")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
