"""Numbers of a run: per-step metrics, and the summary at the end. Every rate exists per environment."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median, pstdev

import numpy as np

from envs.handover import full_reward
from rl.samples.cache_use import CacheUse
from rl.samples.group import GroupReport, MemberReport
from trainer.advantage import all_equal


def rollout_metrics(reports: Sequence[GroupReport]) -> dict[str, float]:
    """Metrics of the groups that finished since the last step: `rollout/<env>/...` and `rollout/all/...`,
    `reward/<env>/<name>` of each named reward, and `cache/...`."""
    by_env: dict[str, list[MemberReport]] = defaultdict(list)
    groups: dict[str, list[list[float]]] = defaultdict(
        list
    )  # rewards of those with two or more judged
    for report in reports:
        rewards = [m.reward for m in report.members if m.judged]
        for env in (report.spec.env, "all"):
            by_env[env] += report.members
            if len(rewards) > 1:
                groups[env].append(rewards)
    metrics = sum((report.cache_use for report in reports), CacheUse()).metrics()
    for env, members in sorted(by_env.items()):
        judged = [m for m in members if m.judged]
        values: dict[str, float | None] = {
            "reward": fmean(m.reward for m in judged) if judged else None,
            "trajectories": len(members),
            "faults": len(members) - len(judged),
            "malformed_calls": sum(m.num_malformed for m in members),
            "refused_calls": sum(m.num_bad_calls for m in members),
        }
        values |= _spreads([m.reward for m in judged], groups[env])
        # What a fault has cut off says nothing of the policy's lengths.
        values |= _lengths(judged) if judged else {}
        if env != "all":
            metrics |= _named(env, judged)
        for phase in sorted({p for m in members for p in m.phase_seconds}):
            if " " not in phase:
                values[f"{phase}_seconds"] = fmean(m.phase_seconds.get(phase, 0) for m in members)
        for name, value in values.items():
            if value is not None:
                metrics[f"rollout/{env}/{name}"] = float(value)
    return metrics


def _spreads(rewards: Sequence[float], groups: Sequence[Sequence[float]]) -> dict[str, float]:
    """Spread of the rewards over all trajectories and within their groups, and the share of groups without:
    such a group teaches nothing by an advantage that is relative to it."""
    found = {"reward_std": pstdev(rewards)} if rewards else {}
    if groups:
        found["group_reward_std"] = fmean(map(pstdev, groups))
        found["zero_variance"] = fmean(map(all_equal, groups))
    return found


def _lengths(members: Sequence[MemberReport]) -> dict[str, float]:
    """Means of turns and tokens, and quantiles of the tokens that a trajectory's policy wrote: values that
    some trajectory has."""
    tokens = [m.num_completion_tokens for m in members]
    inner = np.quantile(tokens, (0.1, 0.5, 0.9), method="inverted_cdf").tolist()
    names = ("p10", "p50", "p90")
    return {
        "turns": fmean(m.num_turns for m in members),
        "tokens": fmean(m.num_tokens for m in members),
        "completion_tokens": fmean(tokens),
        "truncated": fmean(m.stop_reason in ("max_turns", "max_tokens") for m in members),
        **{f"completion_tokens_{n}": float(v) for n, v in zip(names, inner, strict=True)},
        "completion_tokens_max": float(max(tokens)),
    }


def _named(env: str, judged: Sequence[MemberReport]) -> dict[str, float]:
    """Mean of each named reward, unweighted, and of each metric of a judge, over the trajectories that were
    given it."""
    given: dict[str, list[float]] = defaultdict(list)
    for member in judged:
        for name, value in member.rewards.items():
            given[f"reward/{env}/{name}"].append(value)
        for name, value in member.metrics.items():
            given[f"judge/{env}/{name}"].append(value)
    return {key: fmean(values) for key, values in sorted(given.items())}


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
    return full_reward(rewards.get("solved", reward))


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
