"""The environments of a run as plain data: the ledger, latency, breakers, mixture, noise, selection.

In: the run's last word on each, from the summary, else status.json, else metrics. Out: tables and charts.
"""

from collections import Counter
from collections.abc import Iterable

from rl.dashboard import charts
from rl.dashboard.overview import said
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series, environments

# Kinds of outcome with a column of their own; reasons are told in words.
KINDS = ("trained", "filtered", "stale", "failed", "cancelled", "in_flight", "buffered")
_FATES = ("played", "trained", "dropped")
_MAX_ENVS = 64


def names(run: RunData) -> list[str]:
    """All environments of which anything is known."""
    series = run.series
    found = {
        *ledger(run),
        *(run.status.latency if run.status is not None else ()),
        *environments(series, "mix", "asked"),
        *environments(series, "rollout", "trajectories"),
    }
    return sorted(found)[:_MAX_ENVS]


def ledger(run: RunData) -> dict[str, dict[str, int]]:
    """Per environment: dispatched, and every state and outcome there is."""
    if run.summary is not None and run.summary.ledger is not None:
        return {env: counts for env, counts in run.summary.ledger.items() if env != "all"}
    return dict(run.status.ledger) if run.status is not None else {}


def by_kind(counts: dict[str, int]) -> tuple[Counter[str], list[str]]:
    """Numbers per kind, and the reasons in words, the most frequent first."""
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for key, count in counts.items():
        kind, _, reason = key.partition(":")
        kinds[kind] += count
        if reason and count:
            reasons[f"{kind}: {reason.replace('_', ' ')}"] += count
    return kinds, [f"{reason} {count:,}" for reason, count in reasons.most_common(12)]


def ledger_rows(run: RunData) -> list[dict[str, str]]:
    """The ledger as a table; a row whose outcomes do not add up says so."""
    rows = []
    for env, counts in sorted(ledger(run).items())[:_MAX_ENVS]:
        kinds, reasons = by_kind(counts)
        dispatched = kinds.pop("dispatched", 0)
        if rest := dispatched - kinds.total():
            reasons.insert(0, f"NOT ACCOUNTED FOR {rest:,}")
        share = kinds["trained"] / dispatched if dispatched else 0.0
        rows.append(
            {
                "env": env,
                "dispatched": f"{dispatched:,}",
                "share": f"{share:.0%}",
                **{kind: f"{kinds[kind]:,}" for kind in KINDS},
                "reasons": "; ".join(reasons),
            }
        )
    return rows


def latency_rows(run: RunData) -> list[dict[str, str]]:
    """Seconds per phase, the slowest environments' slowest phases on top within each."""
    if run.status is None:
        return []
    return [
        {
            "id": f"{env}\n{phase}",
            "env": env,
            "phase": phase,
            "p50": _seconds(one.p50),
            "p95": _seconds(one.p95),
            "p99": _seconds(one.p99),
            "count": f"{one.count:,}",
        }
        for env, phases in sorted(run.status.latency.items())[:_MAX_ENVS]
        for phase, one in sorted(phases.items(), key=lambda p: -p[1].p99)
    ]


def selection_rows(run: RunData) -> list[dict[str, str]]:
    """Mean length, turns and reward of what was played, trained and dropped, since the start of the run."""
    rows = []
    for env in ["all", *names(run)]:
        for fate in _FATES:
            key = f"selection/{env}/{fate}"
            if (count := run.series.get(f"{key}/trajectories")) is None:
                continue
            values = {
                name: said(one.last)
                if (one := run.series.get(f"{key}/{name}")) is not None
                else "-"
                for name in ("tokens", "turns", "reward")
            }
            rows.append(
                {
                    "id": f"{env}\n{fate}",
                    "env": env,
                    "fate": fate,
                    "count": f"{count.last:,.0f}",
                    **values,
                }
            )
    return rows


def changes(run: RunData, most: int = 30) -> list[dict[str, object]]:
    """Changes made while training, the newest first: breakers, difficulty, noise."""
    begin = min((span.start for span in run.spans), default=0.0)
    told = [span for span in run.spans if span.lane == "supervision"][-most:]
    return [
        {"id": index, "at": f"{(span.start - begin) / 60:.1f} min", "what": span.what or span.name}
        for index, span in reversed(list(enumerate(told)))
    ]


def environment_charts(run: RunData) -> dict[str, charts.Options]:
    """The charts of the page by a name of ours; those that no environment has values for are left out."""
    found = {"ledger": _ledger_chart(run), "mixture": _mixture_chart(run)}
    lines = {
        "breaker": ("breaker: 0 closed, 1 open", "env", "breaker"),
        "faults": ("faults (not the policy's) per step", "rollout", "faults"),
        "retries": ("episodes begun again, in all", "env", "retries"),
        "gap": ("pass rate: clean less noisy tasks", "env", "noise_gap"),
        "noise": ("level of noise", "env", "noise"),
        "difficulty": ("difficulty of the curriculum", "env", "difficulty"),
        "truncated": ("share of episodes cut off at a limit", "rollout", "truncated"),
    }
    for name, (title, kind, key) in lines.items():
        named = _per_env(run, kind, key)
        if name in ("faults", "retries"):
            named = [(env, one) for env, one in named if any(one.values)]
        if named:
            found[name] = charts.lines(title, named, share=name == "truncated")
    return found


def _per_env(run: RunData, kind: str, key: str) -> list[tuple[str, Series]]:
    envs: Iterable[str] = environments(run.series, kind, key)[:_MAX_ENVS]
    return [(env, run.series[f"{kind}/{env}/{key}"]) for env in envs]


def _ledger_chart(run: RunData) -> charts.Options:
    books = {env: by_kind(counts)[0] for env, counts in sorted(ledger(run).items())[:_MAX_ENVS]}
    named = [
        (kind.replace("_", " "), [float(kinds[kind]) for kinds in books.values()]) for kind in KINDS
    ]
    return charts.bars(
        "what became of trajectories",
        list(books),
        [(name, values) for name, values in named if any(values)],
        stacked=True,
    )


def _mixture_chart(run: RunData) -> charts.Options:
    envs = environments(run.series, "mix", "asked")[:_MAX_ENVS]
    named = [
        (title, [run.series[f"mix/{env}/{key}"].last for env in envs])
        for title, key in (("asked for", "asked"), ("begun", "begun"), ("trained on", "trained"))
        if all(f"mix/{env}/{key}" in run.series for env in envs)
    ]
    return charts.bars("mixture: shares of groups, lately", envs, named if envs else [])


def _seconds(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
