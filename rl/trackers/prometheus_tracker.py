"""Prometheus: `/metrics` of a run, on the loopback unless another host is given.

The address is in prometheus.address in the run folder. Counts come from status.json, which the run writes
every few seconds, and from the steps; vLLM's own metrics from what each engine leaves in
prometheus/ENGINE.prom, with the engine's name as a label.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rl.record.status import Status
from rl.trackers.tracker import Ended, Line, News, RunFacts

ADDRESS = "prometheus.address"
# Folder of what engines write, and after how many seconds an engine's is too old to be of one that lives.
ENGINES, STALE_SECONDS = "prometheus", 60.0


class PrometheusTracker:
    """Serves one run's metrics until the run ends."""

    hears = frozenset({Line, Status})

    def __init__(self, run: RunFacts) -> None:
        settings = run.trackers.prometheus
        self.metrics = RunMetrics(run.folder)
        registry = CollectorRegistry()
        registry.register(self.metrics)
        self._server, _ = start_http_server(settings.port, settings.host, registry)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._address = run.folder / ADDRESS
        self._address.write_text(
            f"http://{host}:{self._server.server_port}/metrics\n", encoding="utf-8"
        )

    def take(self, news: News) -> None:
        """Take a step's metrics, or a status."""
        self.metrics.take(news)

    def look(self) -> None:
        """Nothing to look for: who asks is answered from a thread."""

    def end(self, ended: Ended) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._address.unlink(missing_ok=True)


class RunMetrics(Collector):
    """Collects what `/metrics` shows: the last status, and the metrics of the last step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._status: Status | None = None
        self._values: dict[str, float] = {}
        self._tokens = 0.0

    def take(self, news: News) -> None:
        """Take a step's metrics, or a status."""
        match news:
            case Line():
                self._values = {**self._values, **news.values}
                self._tokens += news.values.get("rollout_tokens", 0.0)
            case Status():
                self._status = news
            case _:
                pass

    def collect(self) -> Iterator[Metric]:
        """All metrics of now; called in a thread of the server."""
        yield from self._steps()
        if (status := self._status) is not None:
            yield from _of_status(status)
            yield from _ledger(status)
        yield from engine_metrics(self.folder / ENGINES)

    def _steps(self) -> Iterator[Metric]:
        yield _counter("dorado_rollout_tokens", "Tokens played, as of the last step", self._tokens)
        values = self._values
        every = GaugeMetricFamily(
            "dorado_metric", "Last value of each key of metrics.jsonl", labels=["key"]
        )
        for key, value in values.items():
            every.add_metric([key], value)
        yield every
        staleness = GaugeMetricFamily(
            "dorado_staleness_versions",
            "Versions between a trained trajectory and the learner, in the last step",
            labels=["of"],
        )
        for of in ("mean", "max"):
            if (value := values.get(f"staleness/{of}")) is not None:
                staleness.add_metric([of], value)
        yield staleness


def _of_status(status: Status) -> Iterator[Metric]:
    yield _gauge("dorado_step", "Learner steps made, which is the policy version", status.step)
    yield _gauge("dorado_steps", "Learner steps that the run is to make", status.steps)
    yield _gauge("dorado_status_timestamp_seconds", "When the run wrote its status", status.time)
    yield _gauge(
        "dorado_buffered_trajectories", "Finished, waiting to be trained on", status.buffered
    )
    yield _gauge("dorado_live_versions", "Policy versions in the window", len(status.window))
    phases = GaugeMetricFamily(
        "dorado_in_flight_trajectories", "Trajectories by phase", labels=["env", "phase"]
    )
    for env, counts in status.counts.items():
        for phase, count in counts.items():
            phases.add_metric([env, phase], count)
    yield phases
    versions = GaugeMetricFamily(
        "dorado_engine_version", "Policy version that an engine serves", labels=["engine"]
    )
    changing = GaugeMetricFamily(
        "dorado_engine_changing", "1 while an engine changes its version", labels=["engine"]
    )
    for engine, version in status.engines.items():
        changing.add_metric([engine], float(version is None))
        if version is not None:
            versions.add_metric([engine], version)
    yield versions
    yield changing
    yield _gauge("dorado_engines", "Engines that live", len(status.engines))
    seen = GaugeMetricFamily(
        "dorado_actor_seen_timestamp_seconds", "When an actor last answered", labels=["actor"]
    )
    for actor in status.actors:
        if actor.seen is not None:
            seen.add_metric([actor.name], actor.seen)
    yield seen


def _ledger(status: Status) -> Iterator[Metric]:
    """The ledger's counts: those that only grow as counters, where trajectories are now as gauges."""
    ended = CounterMetricFamily(
        "dorado_trajectories",
        "Trajectories by what became of them; dispatched is their sum",
        labels=["env", "outcome", "reason"],
    )
    now = GaugeMetricFamily(
        "dorado_ledger_trajectories", "Trajectories that have not ended", labels=["env", "state"]
    )
    for env, counts in status.ledger.items():
        for state, count in counts.items():
            outcome, _, reason = state.partition(":")
            if outcome in ("in_flight", "buffered"):
                now.add_metric([env, outcome], count)
            else:
                ended.add_metric([env, outcome, reason], count)
    yield ended
    yield now


def engine_metrics(folder: Path, now: float | None = None) -> Iterable[Metric]:
    """vLLM's own metrics of all engines that live, with a label `actor`."""
    families: dict[str, Metric] = {}
    now = time.time() if now is None else now
    for file in sorted(folder.glob("*.prom")):
        try:
            if now - file.stat().st_mtime > STALE_SECONDS:
                continue
            found = list(text_string_to_metric_families(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
        for family in found:
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            for one in family.samples:
                labels = {**one.labels, "actor": file.stem}
                into.add_sample(one.name, labels, one.value)
    return families.values()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
