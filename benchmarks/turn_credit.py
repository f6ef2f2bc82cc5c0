"""Credit per turn against one advantage for a whole trajectory: steps to a target on games of several turns.

    python benchmarks/turn_credit.py [--game bandit --game memory] [--steps 120] [--seeds 3]

A tiny Qwen3-MoE with random weights and the real learner, in one process without an engine
(`benchmarks/turn_games.py` has the games). *bandit*: two turns with a known optimum, of which the first pays
with much noise, and the second is worth waiting for. *memory*: the built-in environment with `turn_rewards`,
seven lines. The target is 95 % of the best; a run ends 20 steps after it has that, and its last ten steps say
where it stays.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from turn_games import GAMES, HEAD, table_row, tiny_policy

SETUPS: dict[str, dict[str, Any]] = {
    "one advantage for all": {},
    "per turn": {"credit": "turn"},
    "per turn, discount 0": {"credit": "turn", "discount": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Credit per turn against one for all.")
    parser.add_argument("--game", choices=tuple(GAMES), action="append")
    parser.add_argument("--only", choices=tuple(SETUPS), action="append")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_policy(Path(name))
        for game in given.game or ("bandit", "memory"):
            for label in given.only or SETUPS:
                setup = {"loss": {"kind": "dapo"}, "optim": {"lr": 2e-3}, **SETUPS[label]}
                row = table_row(
                    folder, setup, game, label=label, steps=given.steps, seeds=given.seeds
                )
                print(row, flush=True)


if __name__ == "__main__":
    main()
