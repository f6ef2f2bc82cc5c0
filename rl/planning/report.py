"""The report of `dorado plan --here`: what was measured, the candidates, and the lines to paste."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from rl.config import Mode, RunConfig
from rl.planning.machine import EngineCost, Machine
from rl.planning.measure import measure
from rl.planning.predict import Candidate, Prediction, candidates, own_candidate, predict
from rl.planning.refusal import refuse
from rl.preflight.check import check_run
from rl.preflight.settings import resolved

SHOWN = 6
# A proposal has to be better than the run's own settings by more than figures differ from hour to hour.
WORTH = 1.05
# What a machine with nothing else to do uses, at most.
BUSY_CPUS = 0.15


@dataclass(frozen=True)
class Plan:
    """own: None where the run's own settings were not measured. modes: the proposal in every mode."""

    machine: Machine
    own: Prediction | None
    ranked: tuple[Prediction, ...]
    proposed: Prediction
    modes: tuple[Prediction, ...]


def plan_here(config: RunConfig, seconds: float, *, compile: bool, as_json: bool) -> None:
    """Check the run, measure this machine for it, and print a plan. Raises ConfigError."""
    refuse(config)
    check_run(config)
    config = resolved(config)
    said = Console(stderr=True).print
    plan = make_plan(config, measure(config, said, seconds=seconds, compile=compile))
    if as_json:
        print(json.dumps(plan_json(plan), indent=1))
        return
    Console().print(table(plan, config))
    print(*plan_lines(plan), sep="\n")


def make_plan(config: RunConfig, machine: Machine) -> Plan:
    """Predict every candidate in the run's mode, and the best one in all modes.

    Of candidates that differ by less than figures do, the one with the fewest engines, threads and sequences
    is proposed.
    """
    ranked = sorted(
        (predict(config, machine, one) for one in candidates(config, machine)),
        key=lambda one: -one.rate,
    )
    mine = own_candidate(config, machine)
    own = predict(config, machine, mine) if mine else None
    ranked = ranked or ([own] if own else [])
    near = [one for one in ranked if one.rate * WORTH >= ranked[0].rate]
    proposed = min(near, key=lambda one: _size(one.candidate))
    modes = tuple(
        predict(config, machine, proposed.candidate, mode)
        for mode in get_args(Mode)
        if _possible(config, mode)
    )
    return Plan(machine, own, tuple(ranked), proposed, modes)


def _size(one: Candidate) -> tuple[int, int, int, bool, int]:
    return (
        one.engines,
        one.engine.threads,
        one.learner.threads,
        one.engine.compiled,
        one.max_num_seqs,
    )


def _possible(config: RunConfig, mode: Mode) -> bool:
    """True if the run's other settings go with a mode."""
    return mode == "in_flight" or config.engine.update != "keep_cache"


def measured_lines(machine: Machine) -> list[str]:
    """Say what was measured, in sentences."""
    lines = [
        f"{machine.cpus} CPUs, {machine.memory / 2**30:.0f} GiB of memory free",
        f"{sum(map(len, machine.groups))} trajectories of {machine.by}: {machine.turns:.1f} turns, "
        f"{machine.trajectory_tokens:.0f} tokens, {machine.written:.0f} of them written; "
        f"{1e3 * machine.episode_cpu:.1f} ms of CPU each outside of engine and learner",
    ]
    lines += [_engine_line(engine) for engine in machine.engines]
    for one in machine.learners:
        lines.append(
            f"learner, {one.threads} thread{'s'[: one.threads > 1]}, micro-batches of "
            f"{one.micro_batch_tokens}: {1 / one.per_token:,.0f} tokens/s, and {one.fixed:.2f} s a step"
        )
    share = machine.sharing
    lines.append(
        f"side by side an engine takes {share.engine:.2f} times as long, a learner {share.learner:.2f}; "
        f"of two engines each {share.pair:.2f} times"
    )
    return lines


def _engine_line(engine: EngineCost) -> str:
    levels = ", ".join(
        f"{one.tokens_per_second:,.0f} tokens/s ({one.rate:.1f} trajectories/s) at {one.sequences}"
        for one in engine.replays
    )
    kind = "compiled" if engine.compiled else "eager"
    change = engine.change
    pause = "" if change is None else f", a change of weights {change.staging + change.pause:.2f} s"
    return (
        f"engine, {kind}, {engine.threads} thread{'s'[: engine.threads > 1]}: {levels}; reads "
        f"{1 / max(1e-9, engine.reading):,.0f} tokens/s{pause}"
    )


def doubt_lines(plan: Plan) -> list[str]:
    """How sure the figures are, and what they leave out."""
    worst = max(engine.error for engine in plan.machine.engines)
    lines = [
        f"the model of an engine is within {worst:.0%} of what each measured level took",
        "left out: evaluations and checkpoints beside training, groups without a gradient, and that lengths "
        "change while the policy learns",
    ]
    if plan.machine.by != "the policy":
        lines.append(
            "lengths are those of the experts, which the cold start has yet to imitate; once a run has "
            "made it, what the policy plays is measured"
        )
    if plan.machine.others > BUSY_CPUS:
        lines.insert(
            0,
            f"other processes kept {plan.machine.others:.1f} CPUs busy meanwhile: the figures are those of a "
            "machine that is shared with them",
        )
    return [*lines, *plan.machine.notes]


def table(plan: Plan, config: RunConfig) -> Table:
    """The run's own settings and the best candidates, by trajectories per second."""
    shown = Table(title=f"{config.name}, mode {config.mode}: predicted", title_justify="left")
    for column in ("", "engines", "threads", "compile", "max_num_seqs"):
        shown.add_column(column, justify="left" if not column else "right")
    for column in (
        "micro-batch",
        "learner threads",
        "trajectories/s",
        "s a step",
        "learner at work",
    ):
        shown.add_column(column, justify="right")
    rows = [("as it is", plan.own)] if plan.own else []
    rows.append(("proposed", plan.proposed))
    rows += [("", one) for one in plan.ranked[:SHOWN] if one != plan.proposed]
    for name, one in rows:
        shown.add_row(name, *_cells(one))
    return shown


def _cells(one: Prediction) -> Sequence[str]:
    chosen = one.candidate
    return (
        str(chosen.engines),
        str(chosen.engine.threads),
        "yes" if chosen.engine.compiled else "no",
        str(chosen.max_num_seqs),
        str(chosen.learner.micro_batch_tokens),
        str(chosen.learner.threads),
        f"{one.rate:.1f}",
        f"{one.step_seconds:.2f}",
        f"{one.learner_share:.0%}",
    )


def mode_line(plan: Plan) -> str:
    """The proposed settings in every mode."""
    rates = ", ".join(f"{one.mode} {one.rate:.1f}" for one in plan.modes)
    return f"with the proposed settings, trajectories/s by mode: {rates}"


def plan_lines(plan: Plan) -> list[str]:
    """All that is printed below the table."""
    return [
        mode_line(plan),
        "",
        "measured:",
        *(f"  {line}" for line in measured_lines(plan.machine)),
        "how sure:",
        *(f"  {line}" for line in doubt_lines(plan)),
        "",
        toml_lines(plan.proposed.candidate),
    ]


def toml_lines(candidate: Candidate) -> str:
    """A candidate as a run's configuration says it."""
    engine, learner = candidate.engine, candidate.learner
    return "\n".join(
        (
            "[engine]",
            f"count = {candidate.engines}",
            f"threads = {engine.threads}",
            f"max_num_seqs = {candidate.max_num_seqs}",
            f"compile = {str(engine.compiled).lower()}",
            "",
            "[learner]",
            f"micro_batch_tokens = {learner.micro_batch_tokens}",
            f"threads = {learner.threads}",
        )
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """For `--json`: settings as overrides name them, with what is predicted."""

    def row(one: Prediction) -> dict[str, Any]:
        chosen = one.candidate
        return {
            "mode": one.mode,
            "engine.count": chosen.engines,
            "engine.threads": chosen.engine.threads,
            "engine.max_num_seqs": chosen.max_num_seqs,
            "engine.compile": chosen.engine.compiled,
            "learner.micro_batch_tokens": chosen.learner.micro_batch_tokens,
            "learner.threads": chosen.learner.threads,
            "trajectories_per_s": round(one.rate, 3),
            "tokens_per_s": round(one.tokens_per_second, 1),
            "step_s": round(one.step_seconds, 3),
        }

    return {
        "measured": measured_lines(plan.machine),
        "doubts": doubt_lines(plan),
        "as_it_is": row(plan.own) if plan.own else None,
        "proposed": row(plan.proposed),
        "candidates": [row(one) for one in plan.ranked],
        "modes": [row(one) for one in plan.modes],
    }
