"""What a run has done so far, counted: for the metrics of a step and for summary.json."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rl.fleet.weight_sync import SyncTimes
from rl.samples.group import GroupReport
from rl.samples.metrics import histogram, quantiles, rollout_metrics
from rl.samples.sample_queue import BufferedGroup


class RunStats:
    """Of one run, or of its part since it was resumed."""

    def __init__(self) -> None:
        self.tokens = 0
        self.trained_tokens = 0
        self.faults: Counter[str] = Counter()
        # Of tokens of trained trajectories: versions between the oldest token and the learner's.
        self.staleness: Counter[int] = Counter()
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        self.evals: dict[str, dict[str, float]] = {}
        self.eval_faults: dict[str, int] = {}
        self._reports: list[GroupReport] = []  # since the last step
        self._syncs: list[SyncTimes] = []
        self._parity: list[float] = []

    def played(self, report: GroupReport) -> None:
        """A group has ended."""
        self._reports.append(report)
        self.tokens += sum(m.num_tokens for m in report.members)

    def trained(
        self, groups: Iterable[BufferedGroup], version: int, metrics: dict[str, float]
    ) -> dict[str, float]:
        """The learner has stepped on them from this version on. The metrics of rollouts and staleness."""
        gaps = [version - oldest for group in groups for oldest in group.versions]
        self.staleness.update(gaps)
        self.trained_tokens += int(metrics["learner/tokens"])
        if metrics["parity/tokens"]:
            self._parity.append(metrics["parity/mean_abs_dlogp"])
        reports, self._reports = self._reports, []
        return {
            **rollout_metrics(reports),
            "rollout_tokens": float(sum(m.num_tokens for r in reports for m in r.members)),
            "staleness/mean": sum(gaps) / len(gaps),
            "staleness/max": float(max(gaps)),
        }

    def stepped(self, seconds: float, waiting: float) -> None:
        """A step took so long, and so much of it the learner waited for a batch."""
        self.training_seconds += seconds
        self.waiting_seconds += waiting

    def synced(self, times: SyncTimes) -> None:
        """A version has come to the engines."""
        self._syncs.append(times)

    def summary(self) -> dict[str, Any]:
        """What summary.json says of it."""
        waiting = self.waiting_seconds / self.training_seconds if self.training_seconds else None
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "training_s": round(self.training_seconds, 1),
            "rollout_only_share": None if waiting is None else round(waiting, 4),
            "eval": {**self.evals, "faults": self.eval_faults},
            "staleness": histogram(self.staleness),
            "parity": {
                "mean_abs_dlogp": _mean(self._parity),
                "max_step": max(self._parity, default=None),
            },
            "engine": {
                "pause_ms": quantiles([ms for s in self._syncs for ms in s.pause_ms]),
                "transfer_ms": quantiles([ms for s in self._syncs for ms in s.staging_ms]),
            },
            "faults": dict(self.faults.most_common(20)),
        }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
