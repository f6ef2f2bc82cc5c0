"""`dorado plan`: what K, split, over-dispatch and concurrency buy, and what they cost in staleness."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from rl.config_file import ConfigError, build
from rl.nodes.cpus import usable_cpus
from rl.simulator.config import ModeSpec, SimConfig
from rl.simulator.report import duration, figures
from rl.simulator.simulation import Simulation

# What is swept besides what the file has.
LIVE, OVER_DISPATCH = (1, 2, 3, 4), (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Setting:
    """One point of a sweep. live: K. rollout_share: of the devices. concurrency: sequences per engine."""

    live: int
    rollout_share: float
    over_dispatch: float
    concurrency: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a setting. frontier: no other setting is at least as good in step time and in staleness,
    and better in one of them."""

    setting: Setting
    step_min: float
    tokens_per_s: float
    staleness: float
    bubble: float
    frontier: bool = False

    def as_json(self) -> dict[str, Any]:
        """Flat, for `--json`."""
        values = asdict(self)
        return values.pop("setting") | values


def settings(
    config: SimConfig,
    live: Sequence[int],
    shares: Sequence[float],
    over_dispatch: Sequence[float],
    concurrency: Sequence[int],
) -> list[Setting]:
    """All combinations, in order. Raises ConfigError.

    An empty list stands for what [modes.dora] has; of K and over-dispatch, for that and some others.
    """
    mode = _dora(config)
    if mode.layout == "colocated" and shares:
        raise ConfigError(
            "--share: with layout colocated the learner has all devices, there is no split"
        )
    combined = itertools.product(
        live or sorted({*LIVE, mode.live}),
        shares or [mode.rollout_share],
        over_dispatch or sorted({*OVER_DISPATCH, mode.over_dispatch}),
        concurrency or [mode.engine_limit],
    )
    found = list(itertools.starmap(Setting, combined))
    for one in found:
        _changed(config, one)
    return found


def sweep(
    config: SimConfig, points: Sequence[Setting], report: Callable[[int, int], None]
) -> list[Outcome]:
    """Simulate every setting, on all cores. `report(done, all)` is called after each."""
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(usable_cpus()) as pool:
        for outcome in pool.map(_play, itertools.repeat(config), points):
            outcomes.append(outcome)
            report(len(outcomes), len(points))
    return frontier(outcomes)


def frontier(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes by staleness, with those marked that no other one beats."""
    return list(_marked(sorted(outcomes, key=lambda o: (o.staleness, o.step_min))))


def _marked(ordered: Sequence[Outcome]) -> Iterator[Outcome]:
    best = float("inf")
    for one in ordered:
        yield replace(one, frontier=one.step_min < best)
        best = min(best, one.step_min)


def _dora(config: SimConfig) -> ModeSpec:
    if "dora" not in config.modes:
        raise ConfigError("plan: there is no [modes.dora] in the file, which the sweep starts from")
    return config.modes["dora"]


def _changed(config: SimConfig, setting: Setting) -> ModeSpec:
    mode = _dora(config)
    change = {
        "live": setting.live,
        "max_staleness": setting.live,
        "rollout_share": setting.rollout_share,
        "over_dispatch": setting.over_dispatch,
        "engine_limit": setting.concurrency,
    }
    return build(mode.model_dump() | change, "plan", (), ModeSpec)


def _play(config: SimConfig, setting: Setting) -> Outcome:
    simulation = Simulation(config, _changed(config, setting))
    simulation.run()
    values = figures(simulation)
    gaps = {int(gap): count for gap, count in values["staleness"].items()}
    mean = sum(gap * count for gap, count in gaps.items()) / sum(gaps.values())
    return Outcome(
        setting, values["step_min"], values["tokens_per_s"], round(mean, 3), values["bubble"]
    )


def table(outcomes: Sequence[Outcome]) -> Table:
    """The frontier, the freshest first."""
    shown = Table(title="frontier of step time and staleness", title_justify="left")
    columns = ("K", "rollout share", "over-dispatch", "per engine")
    for column in (*columns, "step", "tokens/s", "staleness", "bubble"):
        shown.add_column(column, justify="right")
    for one in outcomes:
        if one.frontier:
            point = one.setting
            shown.add_row(
                str(point.live),
                f"{point.rollout_share:.2f}",
                f"{point.over_dispatch:g}",
                str(point.concurrency),
                duration(one.step_min),
                f"{one.tokens_per_s:,.0f}",
                f"{one.staleness:.2f}",
                f"{one.bubble:.0%}",
            )
    return shown
