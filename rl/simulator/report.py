"""Figures of a simulated run, and the table of several modes."""

from collections import Counter
from typing import Any

from rich.table import Table

from rl.simulator.config import SimConfig
from rl.simulator.simulation import Simulation


def figures(simulation: Simulation) -> dict[str, Any]:
    """Over the measured steps, as `dorado simulate --json` prints them.

    rollout_only_share: of the time, with the learner idle. bubble: of the devices' time, with neither a
    sequence nor a training step. load_ratio: sequences over places, while engines are not lent.
    """
    config, steps = simulation.config, simulation.steps
    begin = steps[config.warmup_steps - 1].end if config.warmup_steps else 0.0
    measured = steps[config.warmup_steps :]
    seconds = measured[-1].end - begin
    learner = sum(s.learner_seconds for s in measured)
    tokens = sum(s.tokens for s in measured)
    gaps = Counter(gap for s in measured for gap in s.staleness)
    tally = simulation.tally
    return {
        "step_min": round(seconds / len(measured) / 60, 4),
        "tokens_per_s": round(tokens / seconds, 1),
        "rollout_only_share": round(1 - learner / seconds, 4),
        "bubble": round(_bubble(simulation), 4),
        "load_ratio": round(_load_ratio(simulation), 4),
        "staleness": {str(gap): gaps[gap] for gap in sorted(gaps)},
        "learner_min": round(learner / len(measured) / 60, 4),
        "weight_moves": tally.weight_moves,
        "request_moves": tally.request_moves,
        "gigabytes_moved": round(tally.bytes_moved / 1e9, 3),
        "tokens_prefilled_again": round(tally.reprefilled_tokens),
        "rebalances": dict(sorted(tally.rebalances.items())),
        "ledger": {
            "dispatched": tally.dispatched,
            "trained": tally.trained,
            "filtered": tally.filtered,
            "discarded": tally.discarded,
            "stale": tally.stale,
            "remainder": simulation.ledger_remainder(),
        },
    }


def _bubble(simulation: Simulation) -> float:
    per_engine = simulation.config.cluster.devices_per_engine
    busy = sum(e.busy_seconds for e in simulation.engines.values()) * per_engine
    busy += sum(s.learner_seconds for s in simulation.steps) * simulation.learner_devices
    return 1 - busy / (simulation.now * simulation.config.cluster.devices)


def _load_ratio(simulation: Simulation) -> float:
    lent = sum(s.learner_seconds for s in simulation.steps)
    places = 0.0
    for engine in simulation.engines.values():
        seconds = simulation.now - (lent if engine.name in simulation.borrowed else 0.0)
        places += seconds * engine.limit
    return sum(e.sequence_seconds for e in simulation.engines.values()) / places


def simulate(config: SimConfig) -> dict[str, Any]:
    """All modes of a configuration: `{"modes": {mode: figures}}`."""
    modes: dict[str, Any] = {}
    for name, mode in config.modes.items():
        simulation = Simulation(config, mode)
        simulation.run()
        modes[name] = figures(simulation)
    return {"name": config.name, "devices": config.cluster.devices, "modes": modes}


def table(result: dict[str, Any]) -> Table:
    """The modes side by side."""
    shown = Table(title=f"{result['name']}: {result['devices']} devices")
    shares = ("rollout_only_share", "bubble", "load_ratio")
    for column in ("mode", "step", "tokens/s", "rollout only", "bubble", "load", "staleness"):
        shown.add_column(column, justify="left" if column == "mode" else "right")
    for name, row in result["modes"].items():
        gaps = " ".join(f"{gap}:{count}" for gap, count in row["staleness"].items())
        rates = (duration(row["step_min"]), f"{row['tokens_per_s']:,.0f}")
        shown.add_row(name, *rates, *(f"{row[share]:.0%}" for share in shares), gaps)
    return shown


def duration(minutes: float) -> str:
    """In the unit that suits it."""
    return f"{minutes:.2f} min" if minutes >= 1 else f"{60 * minutes:.2f} s"
