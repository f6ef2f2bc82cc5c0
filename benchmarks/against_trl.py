"""Dorado against TRL: the same work on one machine, one after the other, and where Dorado's CPU seconds go.

    python benchmarks/against_trl.py [--only single|instant|slow] [--dtype float32|bfloat16] [--quick]
        [--json] [--cache FOLDER] [any setting of Dorado's, such as --engine.count 1]

Both sides start from the same tiny Qwen3-MoE, ask the same prompts, sample alike, and make as many updates of
64 trajectories (8 groups of 8) with GRPO's advantages at the same learning rate:

    single   one turn of at most 64 tokens, random weights; the reward is how much of that is digits
    instant  two to four calculations in a row with tools that answer at once: three to five turns, after a
             cold start; the reward is 1 for the right answer
    slow     the same with tools of 0.05 s in the median and 1 s in the 99th percentile

TRL has `GRPOTrainer` with transformers' generation (`environment_factory` for the tools) in a virtual
environment that this script makes in the cache folder; Dorado has one compiled engine, a compiled learner of
one thread, mode `in_flight`, CISPO (the gradient of GRPO without its clip, which suits no older batch)
and the settings of the command line. Each is played twice in float32 and in bfloat16; the faster one counts.
Seconds are those of all updates, start-up and evaluation left out; held-out tasks are played once each after
the last update.

Target: twice TRL's trajectories per second in `single` and `instant`, four times in `slow`. Exits with 1
where it is missed, with 2 where a side cannot be played. Figures are of use on an idle machine only.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Literal, TypedDict

from peer import dorado_side
from peer.arithmetic import data_of
from peer.cpu_seconds import cores
from peer.dorado_side import Cost, SideFailed
from peer.trl_environment import NoEnvironment, default_cache, trl_python
from peer.work import CHAIN_TOKENS, CHAIN_TURNS, DIGITS_TOKENS, Job, Outcome
from rich.console import Console
from rich.table import Table

from rl.env_table import EnvTable
from rl.loop.evaluation import heldout_tasks

KINDS = ("single", "instant", "slow")
DTYPES = ("float32", "bfloat16")
TARGETS = {"single": 2.0, "instant": 2.0, "slow": 4.0}
GROUPS, GROUP_SIZE = 8, 8
UPDATES = {"single": 24, "instant": 16, "slow": 8}
LEARNING_RATE = {"single": 3e-4, "instant": 2e-4, "slow": 2e-4}
HELDOUT = 128
NOT_PLAYED = (
    "AsyncGRPO is not played: it sends a policy's weights to vLLM by NCCL, which needs GPUs; without them it "
    "sends adapters alone, and here all weights are trained."
)


class Play(TypedDict):
    """One side's repetitions of one kind of work in one dtype. costs: Dorado's only."""

    kind: str
    side: str
    dtype: str
    outcomes: list[Outcome]
    costs: list[Cost]


def make_job(kind: str, dtype: str, policy: Path, *, quick: bool, repetition: int) -> Job:
    """The job of one repetition, for both sides; repetitions differ in their seeds."""
    world = EnvTable(id=dorado_side.environment(kind))
    updates = max(2, UPDATES[kind] // 6) if quick else UPDATES[kind]
    tasks = islice(world.make().tasks("train", repetition), updates * GROUPS)
    heldout = heldout_tasks(world, HELDOUT // 4 if quick else HELDOUT)
    return {
        "kind": kind,
        "policy": str(policy),
        "dtype": dtype,
        "updates": updates,
        "groups": GROUPS,
        "group_size": GROUP_SIZE,
        "lr": LEARNING_RATE[kind],
        "turns": 1 if kind == "single" else CHAIN_TURNS,
        "completion_tokens": DIGITS_TOKENS if kind == "single" else CHAIN_TOKENS,
        "seed": repetition,
        "train": [data_of(task) for task in tasks],
        "heldout": [data_of(task) for task in heldout],
    }


def play_trl(job: Job, name: str, folder: Path, python: Path) -> Outcome:
    """Play a job with TRL in its own interpreter. Raises SideFailed."""
    source, target = folder / f"{name}.json", folder / f"{name}-outcome.json"
    source.write_text(json.dumps(job), encoding="utf-8")
    dorado_side.run(
        [str(python), "-m", "peer.trl_side", str(source), str(target)], folder / f"{name}.log"
    )
    return json.loads(target.read_text(encoding="utf-8"))


def play_all(asked: argparse.Namespace, overrides: Sequence[str], folder: Path) -> list[Play]:
    """Play everything that is asked for, one after the other. Raises SideFailed, NoEnvironment."""
    python = trl_python(asked.cache)
    plays: list[Play] = []
    for kind in asked.only or KINDS:
        policy = dorado_side.policy(kind, asked.cache, folder)
        for dtype in asked.dtype or DTYPES:
            both: list[Play] = [
                {"kind": kind, "side": side, "dtype": dtype, "outcomes": [], "costs": []}
                for side in ("TRL", "Dorado")
            ]
            for repetition in range(1 if asked.quick else 2):
                job = make_job(kind, dtype, policy, quick=asked.quick, repetition=repetition)
                name = f"{kind}-{dtype}-{repetition}"
                both[0]["outcomes"].append(play_trl(job, f"trl-{name}", folder, python))
                outcome, cost = dorado_side.play(job, f"dorado-{name}", folder, overrides)
                both[1]["outcomes"].append(outcome)
                both[1]["costs"].append(cost)
                for one in both:
                    said = one["outcomes"][-1]
                    rate = said["trajectories"] / said["seconds"]
                    print(f"{name}: {one['side']} {rate:.1f} trajectories/s", file=sys.stderr)
            plays += both
    return plays


def mean_rate(
    play: Play, count: Literal["trajectories", "policy_tokens"] = "trajectories"
) -> float:
    """Trajectories, or tokens of the policy, per second: the mean of the repetitions."""
    return fmean(o[count] / o["seconds"] for o in play["outcomes"])


def ratios(plays: Sequence[Play]) -> dict[str, float]:
    """Dorado's trajectories per second over TRL's, by kind of work; each side's faster dtype counts."""
    best: dict[tuple[str, str], float] = {}
    for play in plays:
        key = (play["kind"], play["side"])
        best[key] = max(best.get(key, 0.0), mean_rate(play))
    kinds = dict.fromkeys(play["kind"] for play in plays)
    return {kind: best[kind, "Dorado"] / best[kind, "TRL"] for kind in kinds}


def speed_table(plays: Sequence[Play]) -> Table:
    """The table of what both sides did per second, and of what they had learned."""
    shown = Table(title="Dorado against TRL", title_justify="left")
    for column in ("work", "side", "dtype"):
        shown.add_column(column)
    for column in (
        "trajectories/s",
        "tokens/s",
        "steps/s",
        "turns",
        "held-out reward",
        "CPU ms each",
        "over TRL's better",
    ):
        shown.add_column(column, justify="right")
    trl = {
        kind: max(mean_rate(p) for p in plays if p["kind"] == kind and p["side"] == "TRL")
        for kind in dict.fromkeys(play["kind"] for play in plays)
    }
    for play in plays:
        outcomes, rate = play["outcomes"], mean_rate(play)
        rates = [o["trajectories"] / o["seconds"] for o in outcomes]
        cpu = fmean(o["cpu_seconds"] / o["trajectories"] for o in outcomes)
        shown.add_row(
            play["kind"],
            play["side"],
            play["dtype"],
            f"{rate:.1f} ({min(rates):.1f} to {max(rates):.1f})",
            f"{mean_rate(play, 'policy_tokens'):,.0f}",
            f"{rate / GROUPS / GROUP_SIZE:.3f}",
            f"{fmean(o['turns'] for o in outcomes):.2f}",
            f"{fmean(o['reward_after'] for o in outcomes):.3f}",
            f"{1e3 * cpu:.1f}",
            f"{rate / trl[play['kind']]:.2f}" if play["side"] == "Dorado" else "",
        )
    return shown


def cost_table(plays: Sequence[Play]) -> Table:
    """Where Dorado's CPU seconds went: milliseconds a trajectory by part, and their sum over wall x cores."""
    own = [play for play in plays if play["costs"]]
    shown = Table(title="Dorado's CPU ms a trajectory", title_justify="left")
    shown.add_column("part")
    for play in own:
        shown.add_column(f"{play['kind']} {play['dtype']}", justify="right")
    parts = {part for play in own for cost in play["costs"] for part in cost["parts"]}
    per = {
        part: [
            1e3
            * fmean(
                cost["parts"].get(part, 0.0) / outcome["trajectories"]
                for cost, outcome in zip(play["costs"], play["outcomes"], strict=True)
            )
            for play in own
        ]
        for part in parts
    }
    for part in sorted(parts, key=lambda part: -sum(per[part])):
        shown.add_row(part, *(f"{one:.2f}" for one in per[part]))
    totals = [sum(column) for column in zip(*per.values(), strict=True)]
    shown.add_section()
    shown.add_row("all", *(f"{total:.2f}" for total in totals))
    shares = [
        fmean(sum(cost["parts"].values()) / (cost["wall"] * cores()) for cost in play["costs"])
        for play in own
    ]
    shown.add_row("of wall time x cores", *(f"{share:.0%}" for share in shares))
    return shown


def main() -> int:
    """Play, and print."""
    parser = argparse.ArgumentParser(
        description="Other arguments are settings of Dorado's, such as --engine.count 1."
    )
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind of work alone")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="this dtype alone")
    parser.add_argument("--quick", action="store_true", help="once, a sixth of the updates")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--cache", type=Path, default=default_cache())
    asked, overrides = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is played ends with us
    with tempfile.TemporaryDirectory(prefix="against-trl-") as folder:
        try:
            plays = play_all(asked, overrides, Path(folder))
        except (SideFailed, NoEnvironment) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    reached = ratios(plays)
    if asked.json:
        said = {"cores": cores(), "ratios": reached, "plays": plays, "notes": [NOT_PLAYED]}
        print(json.dumps(said, indent=1))
    else:
        console = Console()
        if not console.is_terminal:  # of a file's width nothing is known
            console = Console(width=140)
        console.print(speed_table(plays), cost_table(plays), NOT_PLAYED)
        for kind, ratio in reached.items():
            console.print(f"{kind}: {ratio:.2f} times TRL (target {TARGETS[kind]:g})")
    return 1 if any(ratio < TARGETS[kind] for kind, ratio in reached.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
