"""Numbers of a run: per-step metrics, and the summary at the end. Every rate exists per environment."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from rl.samples.group import GroupReport, MemberReport


def rollout_metrics(reports: Sequence[GroupReport]) -> dict[str, float]:
    """Metrics of the groups that finished since the last step: `rollout/<env>/...` and `rollout/all/...`."""
    by_env: dict[str, list[MemberReport]] = defaultdict(list)
    for report in reports:
        by_env[report.spec.env] += report.members
        by_env["all"] += report.members
    metrics: dict[str, float] = {}
    for env, members in sorted(by_env.items()):
        judged = [m for m in members if m.judged]
        values = {
            "reward": fmean(m.reward for m in judged) if judged else None,
            "trajectories": len(members),
            "faults": len(members) - len(judged),
            "turns": fmean(m.num_turns for m in members),
            "tokens": fmean(m.num_tokens for m in members),
            "completion_tokens": fmean(m.num_completion_tokens for m in members),
            "malformed_calls": sum(m.num_malformed for m in members),
            "refused_calls": sum(m.num_bad_calls for m in members),
            "truncated": fmean(m.stop_reason in ("max_turns", "max_tokens") for m in members),
        }
        for phase in sorted({p for m in members for p in m.phase_seconds}):
            if " " not in phase:
                values[f"{phase}_seconds"] = fmean(m.phase_seconds.get(phase, 0) for m in members)
        for name, value in values.items():
            if value is not None:
                metrics[f"rollout/{env}/{name}"] = float(value)
    return metrics


def per_env(metrics: Mapping[str, float], kind: str, name: str) -> dict[str, float]:
    """Values of `kind/ENV/name` by environment, whose name may have slashes of its own."""
    start, end = f"{kind}/", f"/{name}"
    return {
        key[len(start) : -len(end)]: value
        for key, value in metrics.items()
        if key.startswith(start) and key.endswith(end) and len(key) > len(start) + len(end)
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and maximum, as the summary gives them."""
    if not values:
        return {}
    return {"p50": round(median(values), 3), "max": round(max(values), 3)}


def passed(rewards: Mapping[str, float], reward: float) -> bool:
    """True if a judged episode has full reward `solved` or, where there is none, a total of at least 1."""
    return rewards.get("solved", reward) >= 1


def pass_rates(reports: Iterable[GroupReport]) -> dict[str, float]:
    """Share of judged held-out episodes with full reward, per environment."""
    results: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for member in report.members:
            if member.judged:
                results[report.spec.env].append(float(passed(member.rewards, member.reward)))
    return {env: round(fmean(values), 4) for env, values in sorted(results.items())}


def histogram(values: Counter[int]) -> dict[str, int]:
    """A counter as JSON wants it, keys in order."""
    return {str(key): values[key] for key in sorted(values)}


def outcome_totals(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The ledger's counts over all environments, with the environments beside them."""
    total: Counter[str] = Counter()
    for env in counts.values():
        total.update(env)
    return {"all": dict(sorted(total.items())), **counts}
