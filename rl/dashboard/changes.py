"""Changes of a run: which of its metrics fell, when, and what else changed at the same steps.

In: the series of a run. Out: change points by key, and sentences for the alerts. A sentence says what changed
together, never why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rl.dashboard.change_points import FEWEST, ChangePoint, change_points
from rl.dashboard.series import Series, environments

Changes = Mapping[str, tuple[ChangePoint, ...]]

# A series is looked at again when it has grown by this share.
_GROWN = 0.02
# Changes whose intervals are no further apart than this are at the same steps.
_NEAR = 5
# What is looked at beside a fall, and what a reader calls it. {env}: of the environment that fell.
_BESIDE = {
    "rollout/{env}/completion_tokens": "tokens written per episode",
    "rollout/{env}/turns": "turns per episode",
    "rollout/{env}/truncated": "share of cut-off episodes",
    "loss/entropy": "entropy",
    "optim/grad_norm": "gradient norm",
    "parity/mean_abs_dlogp": "gap of engine and learner",
    "learn/all/kl_behaviour": "KL to the behaviour policy",
    "loss/clipped_neg": "share of clipped tokens",
    "router/load_violation": "imbalance of the experts",
    "time/tokens_per_second": "tokens per second",
}
_FALLS = ("fell", "turned down")


def find_changes(series: Mapping[str, Series]) -> dict[str, tuple[ChangePoint, ...]]:
    """Change points of held-out pass rates and rewards, and where one of them fell also of what is beside it.

    Takes hundredths of a second per key, once for each 2 % that a series grows.
    """
    found: dict[str, tuple[ChangePoint, ...]] = {}
    for key, env, _ in _results(series):
        found[key] = _points(series[key])
        if any(point.how in _FALLS for point in found[key]):
            for pattern in _BESIDE:
                beside = pattern.format(env=env)
                if beside in series and beside not in found:
                    found[beside] = _points(series[beside])
    return {key: points for key, points in found.items() if points}


@dataclass(frozen=True)
class Change:
    """A change of a pass rate or a reward. fell: for the worse. sentence: such as "held-out of orders fell at
    step 118 (114 to 121) from 0.82 to 0.55, probability 0.97; at the same steps: entropy fell."."""

    key: str
    env: str
    step: int
    fell: bool
    sentence: str


def said_changes(changes: Changes) -> list[Change]:
    """The changes of pass rates and rewards, those of pass rates first."""
    return [
        Change(
            key,
            env,
            point.step,
            point.how in _FALLS,
            f"{name} {point.how} at step {point.step} ({point.low} to {point.high}) from "
            f"{point.before:.2f} to {point.after:.2f}, probability {min(point.probability, 0.999):.3g}"
            f"{_beside(changes, env, point)}.",
        )
        for key, env, name in _results(changes)
        for point in changes[key]
    ]


def _results(keys: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Keys of pass rates and rewards with their environment, and what a reader calls them."""
    for kind, name, said in (("eval", "pass_rate", "held-out"), ("rollout", "reward", "reward")):
        for env in environments(keys, kind, name):
            yield f"{kind}/{env}/{name}", env, f"{said} of {env}"


def _points(one: Series) -> tuple[ChangePoint, ...]:
    """Changes of the series without its newest values, so that it is not looked at again at each step."""
    count = len(one.values)
    if count < FEWEST:
        return ()
    count -= count % max(1, int(_GROWN * count))
    return change_points(tuple(one.steps[:count]), tuple(one.values[:count]))


def _beside(changes: Changes, env: str, fall: ChangePoint) -> str:
    said: list[str] = []
    for pattern, name in _BESIDE.items():
        said += [
            f"{name} {point.how}"
            for point in changes.get(pattern.format(env=env), ())
            if point.low - _NEAR <= fall.high and fall.low <= point.high + _NEAR
        ]
    return f"; at the same steps: {', '.join(said)}" if said else ""
