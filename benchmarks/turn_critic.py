"""`ppo` with its critics against `grpo`, and the turn critic against the linear one.

    python benchmarks/turn_critic.py learning [--game bandit --game corridor] [--steps 120] [--seeds 3]
    python benchmarks/turn_critic.py values [--updates 150] [--seeds 3]
    python benchmarks/turn_critic.py cost

*learning*: steps to 95 % of the best on games of `benchmarks/turn_games.py`: the bandit of two turns, and a
corridor of eight. *values*: eight turns whose arms are drawn evenly, and the end pays 1 where the first arm
was 0 or 1; how far from it are the values of turns two to eight, where the outcome is certain, on episodes
that no critic has seen? A constant is off by 0.25 in the mean square. *cost*: CPU seconds of an update, one
thread.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from turn_games import (
    ARMS,
    GAMES,
    HEAD,
    PROMPT,
    SAID,
    play,
    table_row,
    tiny_policy,
)

from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.sample import TrainSample

TURN, LINEAR = {"kind": "turn"}, {"kind": "linear"}
LEARNING: dict[str, dict[str, Any]] = {
    "grpo": {"loss": {"kind": "grpo"}},
    "grpo, credit per turn": {"loss": {"kind": "grpo"}, "credit": "turn"},
    "ppo, linear critic": {"loss": {"kind": "ppo", "ppo": {"critic_lr": 1e-2}}},
    "ppo, turn critic": {"loss": {"kind": "ppo", "ppo": {"critic_lr": 2e-3}}, "critic": TURN},
}
# The policy's rate is 0 where the critic is to be trained alone.
VALUES: dict[str, tuple[dict[str, Any], bool]] = {
    "linear, trunk trained": (LINEAR, True),
    "linear, detached": ({**LINEAR, "detach": True}, False),
    "turn, detached": ({**TURN, "detach": True}, False),
}
RATES = (1e-3, 1e-2)
EPISODES, TURNS = 64, 8
# Tokens that stand for the arms; the game's own are others.
FIRST_TOKEN, TOKENS = 40, 16


class Early:
    """Eight turns of which the first decides what the end pays; the game says a random token after each."""

    opening = PROMPT

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.arms = chance, list[int]()

    def act(self, arm: int) -> int | None:
        self.arms.append(arm)
        return SAID + self.chance.randrange(ARMS) if len(self.arms) < TURNS else None

    def rewards(self) -> list[float]:
        return [0.0] * (TURNS - 1) + [self.worth()]

    def worth(self) -> float:
        return float(self.arms[0] < 2)


def even(learner: Learner, rng: random.Random) -> list[TrainSample]:
    """Episodes whose arms are drawn evenly, as if the present policy had written them."""
    episodes = play(
        learner,
        [Early(rng) for _ in range(EPISODES)],
        lambda turn: FIRST_TOKEN + rng.randrange(TOKENS),
    )
    return [e.sample(str(i), learner.version) for i, e in enumerate(episodes)]


def value_learner(
    folder: Path, critic: dict[str, Any], *, trunk: bool, rate: float, updates: int
) -> Learner:
    """A learner whose weights are moved by the value's error alone, or nearly."""
    ppo = {"critic_lr": rate, "value_clip": 100.0, "lam": 1.0, "value_weight": 1e3}
    ppo["critic_warmup"] = 0 if trunk else updates
    config = LearnerConfig.model_validate(
        {
            "threads": 1,
            "record_tokens": False,
            "loss": {"kind": "ppo", "behaviour": "engine", "ppo": ppo},
            "critic": critic,
            "optim": {"lr": 1e-3},
        }
    )
    return Learner(folder, config, temperature=1.0, keep_versions=0)


def value_error(learner: Learner, held_out: list[TrainSample]) -> float:
    """The mean square of value less outcome over all turns but the first."""
    found = learner.passes.by_sample(held_out, learner.passes.values)
    errors = [
        (value - s.reward) ** 2
        for s, values in zip(held_out, found, strict=True)
        for value in values[1:]
    ]
    return statistics.fmean(errors)


def values(folder: Path, updates: int, seeds: int) -> None:
    """Print the value's error after a third of the updates and after all, for each critic and rate."""
    print(
        f"| critic | rate | mean square error by seed, {updates // 3} updates | {updates} updates |"
    )
    print("|---|---|---|---|", flush=True)
    for label, (critic, trunk) in VALUES.items():
        for rate in RATES:
            early, late = [], []
            for seed in range(seeds):
                torch.manual_seed(seed)
                learner = value_learner(folder, critic, trunk=trunk, rate=rate, updates=updates)
                held_out, rng = even(learner, random.Random(1000 + seed)), random.Random(seed)
                for update in range(1, updates + 1):
                    learner.step(even(learner, rng))
                    if update == updates // 3:
                        early.append(value_error(learner, held_out))
                late.append(value_error(learner, held_out))
            columns = (", ".join(f"{e:.3f}" for e in errors) for errors in (early, late))
            print(f"| {label} | {rate:g} | {' | '.join(columns)} |", flush=True)


def long_turns(rng: random.Random) -> list[TrainSample]:
    """Four samples of 1,024 tokens: a prompt of 512, then eight turns of 32 with 32 tokens said between."""
    mask = (False,) * 512 + ((True,) * 32 + (False,) * 32) * TURNS
    none = (0.0,) * len(mask)
    versions = tuple(0 if m else -1 for m in mask)
    return [
        TrainSample(
            str(i),
            "long",
            tuple(rng.randrange(400) for _ in mask),
            mask,
            none,
            none,
            versions,
            float(i),
        )
        for i in range(4)
    ]


def cost(folder: Path) -> None:
    """Print the CPU seconds of an update with each critic, medians of ten."""
    print("| critic | 64 episodes of 8 turns, 17 tokens | 4 samples of 8 turns, 1,024 tokens |")
    print("|---|---|---|", flush=True)
    for label, critic in {"linear": LINEAR, "turn": TURN}.items():
        learner = value_learner(folder, critic, trunk=True, rate=1e-3, updates=0)
        medians = []
        for batch in (even(learner, random.Random(0)), long_turns(random.Random(0))):
            seconds = []
            for _ in range(12):
                start = time.process_time()
                learner.step(batch)
                seconds.append(time.process_time() - start)
            medians.append(statistics.median(seconds[2:]))
        print(f"| {label} | {' | '.join(f'{m:.3f}' for m in medians)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Critics of turns, measured.")
    parser.add_argument("what", choices=("learning", "values", "cost"))
    parser.add_argument("--game", choices=tuple(GAMES), action="append")
    parser.add_argument("--only", choices=tuple(LEARNING), action="append")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_policy(Path(name))
        if given.what == "values":
            return values(folder, given.updates, given.seeds)
        if given.what == "cost":
            return cost(folder)
        print(HEAD, flush=True)
        for game in given.game or ("bandit", "corridor"):
            for label in given.only or LEARNING:
                setup = {"optim": {"lr": 2e-3}, **LEARNING[label]}
                row = table_row(
                    folder, setup, game, label=label, steps=given.steps, seeds=given.seeds
                )
                print(row, flush=True)


if __name__ == "__main__":
    main()
