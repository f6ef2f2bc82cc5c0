"""Fits the costs that one measured synchronous step determines, and nothing else.

A synchronous step is rollouts, then training. Its rollout time determines what a sequence adds to a
decoding step (`decode_per_sequence_ms`), the rest of it the part of training that does not shrink with
more devices (`train_fixed_seconds`); what one sequence alone takes and what training computes are inputs.
"""

from rl.config_file import ConfigError
from rl.simulator.config import CostSpec, SimConfig
from rl.simulator.simulation import Simulation

_TOLERANCE = 1e-3


def fit(config: SimConfig) -> dict[str, float]:
    """The two costs at which the simulated mode `sync` takes the measured times. Raises ConfigError."""
    measured, mode = config.measured, config.modes.get("sync")
    if measured is None or mode is None:
        raise ConfigError("--calibrate needs [measured] and [modes.sync] in the file")
    low, high = 0.0, 1.0
    while _rollout_min(config, high) < measured.rollout_min:
        high *= 2
    if _rollout_min(config, low) > measured.rollout_min:
        raise ConfigError(
            f"cost.decode_fixed_ms ({config.cost.decode_fixed_ms:g}) alone takes longer than "
            f"measured.rollout_min ({measured.rollout_min:g})"
        )
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        if _rollout_min(config, middle) < measured.rollout_min:
            low = middle
        else:
            high = middle
    cost = config.cost.model_copy(update={"train_fixed_seconds": 0.0})
    computing = _steps(config, cost)[1]
    return {
        "decode_per_sequence_ms": round((low + high) / 2, 4),
        "train_fixed_seconds": round(
            60 * (measured.step_min - measured.rollout_min) - computing, 1
        ),
    }


def _rollout_min(config: SimConfig, per_sequence: float) -> float:
    cost = config.cost.model_copy(update={"decode_per_sequence_ms": per_sequence})
    step, learner = _steps(config, cost)
    return (step - learner) / 60


def _steps(config: SimConfig, cost: CostSpec) -> tuple[float, float]:
    """Seconds of a simulated synchronous step, and of them the learner's."""
    simulation = Simulation(config.model_copy(update={"cost": cost}), config.modes["sync"])
    simulation.run()
    steps = simulation.steps
    begin = steps[config.warmup_steps - 1].end if config.warmup_steps else 0.0
    measured = steps[config.warmup_steps :]
    seconds = measured[-1].end - begin
    return seconds / len(measured), sum(s.learner_seconds for s in measured) / len(measured)
