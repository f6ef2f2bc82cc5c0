"""vLLM's own metrics of one engine, left in the run folder for `rl.trackers.prometheus_tracker`.

Written anew with every heartbeat, in Prometheus' text format; the rest of the process's metrics is left out.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, Collector


class _Vllm(Collector):
    """The metrics of this process whose names vLLM gives."""

    def collect(self) -> Iterator[Metric]:
        """Yield each family of vLLM's."""
        yield from (one for one in REGISTRY.collect() if one.name.startswith("vllm:"))


class EngineMetrics:
    """Writes one engine's metrics to `prometheus/NAME.prom` in the run folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / "prometheus" / f"{name}.prom"
        self._registry = CollectorRegistry()
        self._registry.register(_Vllm())

    def write(self) -> None:
        """Write them, whole or not at all; a disk that is full must not end an engine for it."""
        partial = self.file.with_suffix(".partial")
        with suppress(OSError):
            self.file.parent.mkdir(exist_ok=True)
            partial.write_bytes(generate_latest(self._registry))
            partial.rename(self.file)
