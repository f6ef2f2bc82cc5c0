"""The totals of a run, counted as it goes: for the metrics of a step and for summary.json."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rl.samples.group import GroupReport, MemberReport
from rl.samples.heldout import Evaluation
from rl.samples.metrics import histogram, quantiles, rollout_metrics
from rl.samples.sample_queue import BufferedGroup


class RunStats:
    """The totals of one run, or of its part since it was resumed."""

    def __init__(self) -> None:
        self.tokens = 0
        self.trained_tokens = 0
        self.faults: Counter[str] = Counter()
        # Groups in a row without one judged trajectory.
        self.failed_in_a_row = 0
        # Groups in a row that were judged and gave no sample, of each environment and of all.
        self.unused: Counter[str] = Counter()
        self.unused_in_a_row = 0
        # Groups that were judged since the last step, and those of them that gave no sample.
        self.judged_since, self.unused_since = 0, 0
        # Versions between the oldest token of a trained trajectory and the learner's.
        self.staleness: Counter[int] = Counter()
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        self.evals: dict[str, dict[str, float]] = {}
        self.eval_faults: dict[str, int] = {}
        # One for each evaluation, shortened.
        self.evaluations: list[dict[str, float | None]] = []
        self._reports: list[GroupReport] = []  # since the last step
        self._pauses_ms: list[float] = []
        self._staging_ms: list[float] = []
        self._parity: list[float] = []

    def played(self, report: GroupReport) -> list[MemberReport]:
        """Count a group that has ended. Returns the members with a fault that was not seen before."""
        self._reports.append(report)
        self.tokens += sum(m.num_tokens for m in report.members)
        self.failed_in_a_row += 1
        env = report.spec.env
        judged = any(member.judged for member in report.members)
        self.judged_since += judged
        if report.sample_ids:
            self.unused_in_a_row = self.unused[env] = 0
        elif judged:
            self.unused_in_a_row += 1
            self.unused_since += 1
            self.unused[env] += 1
        new: list[MemberReport] = []
        for member in report.members:
            if member.judged:
                self.failed_in_a_row = 0
            if member.fault:
                if member.fault not in self.faults:
                    new.append(member)
                self.faults[member.fault] += 1
        return new

    def lost(self, why: str) -> None:
        """Count a group that its controller has lost."""
        self.faults[why] += 1
        self.failed_in_a_row += 1

    def trained(
        self, groups: Iterable[BufferedGroup], version: int, metrics: dict[str, float]
    ) -> dict[str, float]:
        """Count a learner step on `groups` from `version` on. Returns metrics of rollouts and staleness."""
        gaps = [version - oldest for group in groups for oldest in group.versions]
        self.staleness.update(gaps)
        self.trained_tokens += int(metrics["learner/tokens"])
        if metrics["parity/tokens"]:
            self._parity.append(metrics["parity/mean_abs_dlogp"])
        reports, self._reports = self._reports, []
        self.judged_since = self.unused_since = 0
        return {
            **rollout_metrics(reports),
            "rollout_tokens": float(sum(m.num_tokens for r in reports for m in r.members)),
            "staleness/mean": sum(gaps) / len(gaps),
            "staleness/max": float(max(gaps)),
        }

    def stepped(self, seconds: float, waiting: float) -> None:
        """Count the seconds of a step, and those of them in which the learner waited for its batch."""
        self.training_seconds += seconds
        self.waiting_seconds += waiting

    def synced(self, pauses_ms: Sequence[float], staging_ms: Sequence[float]) -> None:
        """Count a version that has come to the engines: milliseconds of each engine."""
        self._pauses_ms += pauses_ms
        self._staging_ms += staging_ms

    def evaluated(self, when: str, found: Evaluation, step: int, faults: int) -> None:
        """Keep the result of an evaluation; of those before and after training by that name, too.

        faults: its episodes that were not judged."""
        if when in ("before", "after"):
            self.evals[when] = found.pass_rates
            self.eval_faults[when] = faults
        mean, low, high = found.mean or (None, None, None)
        self.evaluations.append(
            {
                "step": step,
                "version": found.version,
                "lag": found.lag,
                "pass_rate": mean,
                "low": low,
                "high": high,
            }
        )

    def summary(self) -> dict[str, object]:
        """The totals as summary.json has them."""
        waiting = self.waiting_seconds / self.training_seconds if self.training_seconds else None
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "training_s": round(self.training_seconds, 1),
            "rollout_only_share": None if waiting is None else round(waiting, 4),
            "eval": {**self.evals, "faults": self.eval_faults},
            "evaluations": self.evaluations,
            "staleness": histogram(self.staleness),
            "parity": {
                "mean_abs_dlogp": _mean(self._parity),
                "max_step": max(self._parity, default=None),
            },
            "engine": {
                "pause_ms": quantiles(self._pauses_ms),
                "transfer_ms": quantiles(self._staging_ms),
            },
            "faults": dict(self.faults.most_common(20)),
        }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
