"""A run's configuration as a simulation, with what a finished run played and what its work cost.

`dorado simulate RUN_CONFIG --trace RUN`: how the modes of this configuration would fare. The trace gives
lengths, tool times and costs; the configuration gives sizes and the rules of each mode.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rl.config import Mode, RunConfig, load_config
from rl.config_file import ConfigError, read_config, read_toml
from rl.simulator.config import (
    ClusterSpec,
    CostSpec,
    LengthSpec,
    ModeSpec,
    SimConfig,
    WorkloadSpec,
)
from rl.simulator.workload import load_trace

# Where samples are of older versions the learner computes their log-probs again: one forward pass more,
# which is a third of the forward and backward passes of a step.
AGAIN = 1 / 3


def load_simulation(path: Path, overrides: Sequence[str], trace: str | None) -> SimConfig:
    """A simulation from a file that describes one, or a run. Raises ConfigError."""
    if "model" not in read_toml(path):
        more = [] if trace is None else ["--workload.trace", trace]
        return read_config(path, [*overrides, *more], SimConfig)
    if trace is None:
        raise ConfigError(
            f"config {path}: this describes a run, not a simulation; --trace RUN gives what a finished "
            "run of it played and what it cost"
        )
    return run_as_simulation(load_config(path, overrides), trace)


def run_as_simulation(config: RunConfig, trace: str) -> SimConfig:
    """Raises ConfigError on a bad trace. Each engine counts as one device; a learner with devices of its own
    too."""
    played = load_trace(trace)
    fixed, beside, reading = played.decode_costs()
    batch = config.batch
    return SimConfig(
        name=config.name,
        seed=config.seed,
        steps=config.steps,
        warmup_steps=0,
        cluster=ClusterSpec(devices=devices(config)),
        cost=CostSpec(
            decode_fixed_ms=max(1e-3, 1e3 * fixed),
            decode_per_sequence_ms=1e3 * beside,
            prefill_tokens_per_second=1 / max(1e-9, reading),
            kv_tokens=config.engine.max_num_seqs * config.engine.max_model_len,
            train_fixed_seconds=played.learner_seconds(),
            train_device_seconds_per_token=0,
            weights_seconds=played.load_seconds(),
        ),
        workload=WorkloadSpec(
            groups=batch.groups,
            group_size=batch.group_size,
            # What follows describes drawn trajectories; a trace has its own.
            prompt_tokens=1,
            length=LengthSpec(median=1, sigma=0, max=1),
            trace=trace,
        ),
        modes={mode: mode_spec(config, mode) for mode in get_args(Mode)},
    )


def devices(config: RunConfig) -> int:
    """Number of devices of the simulated cluster."""
    return config.engine.count + (config.layout == "disaggregated")


def mode_spec(config: RunConfig, mode: Mode) -> ModeSpec:
    """A mode of a run, as the simulator knows it."""
    run = config.model_copy(update={"mode": mode})
    rules, limits = run.rules, run.limits
    float32 = {run.learner.dtype, run.engine.dtype} == {"float32"}
    behaviour = run.learner.loss.behaviour
    again = behaviour == "learner" or (behaviour == "auto" and not float32)
    engines = config.engine.count
    standalone = {"disaggregated": engines, "colocated": 1, "elastic": run.standalone_engines}
    return ModeSpec(
        layout=run.layout,
        rollout_share=standalone[run.layout] / devices(run),
        live=rules.live,
        max_staleness=rules.max_staleness,
        in_place=rules.in_place,
        eviction=rules.eviction,
        over_dispatch=limits.target / (run.batch.groups * limits.group_size),
        engine_limit=limits.engine_limit,
        slack=limits.slack,
        expected_tokens=limits.expected_tokens,
        period_seconds=limits.period_seconds,
        max_groups=limits.max_groups,
        train_factor=1 + AGAIN * (rules.max_staleness > 0 and again),
    )
