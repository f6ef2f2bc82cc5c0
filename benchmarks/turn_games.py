"""Games of several turns for a tiny policy, played and trained on in one process; a turn is one token.

An arm is the id of the token that the policy wrote, modulo 4. In: a learner and the games of a batch. Out:
the samples that it is trained on, and what the games were worth. A policy that knows nothing writes each arm
a quarter of the time.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch

from envs.builtin.memory import Memory, MemoryConfig
from envs.env import Deadlines, Task
from envs.message import ToolCall
from envs.session import EnvSession
from trainer.advantage import group_advantage
from trainer.batch import pack
from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint
from trainer.turn_advantage import over_group, rewards_to_go, with_turn_advantages

ARMS = 4
GROUPS, MEMBERS = 8, 8
# Of the best; and so many steps are made after the one that has it.
TARGET, AFTER = 0.95, 20
HEAD = (
    "| game | setup | steps to 95 % of the best, by seed | last ten steps, of the best | CPU s a seed |\n"
    "|---|---|---|---|---|"
)
# Ids of what games say; the policy may write any.
PROMPT, SAID = (300, 301), 304


class Game(Protocol):
    """One episode. opening: the tokens before the first turn."""

    opening: tuple[int, ...]

    def act(self, arm: int) -> int | None:
        """Play a turn; the token that the game says then, None where it is over."""
        ...

    def rewards(self) -> list[float]:
        """The reward of each turn, once it is over."""
        ...

    def worth(self) -> float:
        """The sum of the rewards without their noise."""
        ...


class Bandit:
    """Two turns. The first pays (2.0, 2.1, 0, 0) by arm, and noise of standard deviation 3; the second 0.5
    for arm 0, where the first was arm 0 too. So the best is 2.5, and 2.1 for who looks no turn ahead."""

    opening = PROMPT
    first, second, noise = (2.0, 2.1, 0.0, 0.0), 0.5, 3.0
    best = 2.5

    def __init__(self, task: random.Random, chance: random.Random) -> None:
        self.arms: list[int] = []
        self.luck = self.noise * chance.gauss()

    def act(self, arm: int) -> int | None:
        self.arms.append(arm)
        return SAID + arm if len(self.arms) == 1 else None

    def means(self) -> list[float]:
        """Mean rewards of the turns that were played."""
        one, two = self.arms
        return [self.first[one], self.second * (one == two == 0)]

    def rewards(self) -> list[float]:
        one, two = self.means()
        return [one + self.luck, two]

    def worth(self) -> float:
        return sum(self.means())


class Corridor:
    """Eight turns; in each a door is shown, and its arm pays an eighth at once."""

    turns, best = 8, 1.0

    def __init__(self, task: random.Random, chance: random.Random) -> None:
        self.doors = [task.randrange(ARMS) for _ in range(self.turns)]
        self.opening = (*PROMPT, SAID + self.doors[0])
        self.arms: list[int] = []

    def act(self, arm: int) -> int | None:
        self.arms.append(arm)
        at = len(self.arms)
        return SAID + self.doors[at] if at < self.turns else None

    def rewards(self) -> list[float]:
        both = zip(self.arms, self.doors, strict=True)
        return [(arm == door) / self.turns for arm, door in both]

    def worth(self) -> float:
        return sum(self.rewards())


LOOP = asyncio.new_event_loop()
KINDS = ("tell", "change", "forget", "ask")


class Recall:
    """The built-in environment `memory` with rewards per turn, seven lines. A turn is a line: the policy sees
    its kind, and its arm is what is done with it: `set`, `delete` or `get` with the line's own arguments, or
    none. Each right answer pays its share at once, and a store that is right in the end 1."""

    config = MemoryConfig(difficulty=3, turn_rewards=True)
    best = 2.0

    def __init__(self, task: random.Random, chance: random.Random) -> None:
        played: Task = next(islice(Memory(self.config).tasks("train", task.randrange(2**31)), 1))
        self.lines = played.data["lines"]
        self.env = Memory(self.config)
        self.session = EnvSession(self.env, Deadlines())
        LOOP.run_until_complete(self.session.open(played))
        self.opening = (*PROMPT, self._said(0))
        # The environment's turn in which each line was answered.
        self.answered: list[int] = []

    def _said(self, line: int) -> int:
        return SAID + KINDS.index(self.lines[line][0])

    def act(self, arm: int) -> int | None:
        _, key, value = self.lines[len(self.answered)]
        arguments = {"key": key, "value": value} if arm == 0 else {"key": key}
        answer = "ok"
        if arm < 3:
            call = ToolCall(("set", "delete", "get")[arm], arguments)
            (said,) = LOOP.run_until_complete(self.session.step("", (call,))).messages
            answer = said.content if arm == 2 else "ok"
        over = LOOP.run_until_complete(self.session.step(answer, ())).done
        self.answered.append(self.env.turn_index)
        return None if over else self._said(len(self.answered))

    def rewards(self) -> list[float]:
        found = LOOP.run_until_complete(self.session.score())
        LOOP.run_until_complete(self.session.close())
        parts = [found.by_turn.get(turn, {}).get("recalled", 0.0) for turn in self.answered]
        parts[-1] += found["solved"]
        self.total = sum(parts)
        return parts

    def worth(self) -> float:
        return self.total


GAMES: dict[str, Callable[[random.Random, random.Random], Game]] = {
    "bandit": Bandit,
    "corridor": Corridor,
    "memory": Recall,
}
BEST = {"bandit": Bandit.best, "corridor": Corridor.best, "memory": Recall.best}


@dataclass
class Episode:
    """The tokens of one game, and of those the policy wrote the log-probs."""

    game: Game
    tokens: list[int]
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    over: bool = False

    def sample(self, id: str, version: int) -> TrainSample:
        """The sample to train on, without an advantage yet."""
        rewards = self.game.rewards()
        return TrainSample(
            id=id,
            env="game",
            token_ids=tuple(self.tokens),
            loss_mask=tuple(self.mask),
            rollout_logprobs=tuple(self.logprobs),
            advantages=(0.0,) * len(self.mask),
            versions=tuple(version if m else -1 for m in self.mask),
            reward=sum(rewards),
            turn_rewards=tuple(rewards),
        )


@torch.no_grad()
def play(
    learner: Learner, games: Sequence[Game], arm: Callable[[int], int] | None = None
) -> list[Episode]:
    """Play the games to their ends by the present policy, or by `arm(turn)`, whose token is that number."""
    episodes = [
        Episode(g, [*g.opening], [False] * len(g.opening), [0.0] * len(g.opening)) for g in games
    ]
    turn = 0
    while playing := [e for e in episodes if not e.over]:
        drawn = _drawn(learner, [e.tokens for e in playing]) if arm is None else None
        for number, episode in enumerate(playing):
            token, logprob = drawn[number] if drawn else (arm(turn), 0.0)  # pyright: ignore
            episode.tokens.append(token)
            episode.mask.append(True)
            episode.logprobs.append(logprob)
            said = episode.game.act(token % ARMS)
            episode.over = said is None
            if said is not None:
                episode.tokens.append(said)
                episode.mask.append(False)
                episode.logprobs.append(0.0)
        turn += 1
    return episodes


def _drawn(learner: Learner, rows: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """The next token of each row and its log-prob."""
    n = [len(row) for row in rows]
    samples = [
        TrainSample(
            "",
            "",
            (*row, 0),
            (False,) * k + (True,),
            (0.0,) * (k + 1),
            (0.0,) * (k + 1),
            (-1,) * (k + 1),
        )
        for row, k in zip(rows, n, strict=True)
    ]
    batch = pack(samples, range(len(rows)), learner.device)
    learner.scorer(batch)
    model: Any = learner.model
    hidden_TD = model.model.norm(learner.scorer.before_norm[0])[0]
    logprobs_NV = model.lm_head(hidden_TD[batch.source_N]).float().log_softmax(-1)
    drawn_N = torch.multinomial(logprobs_NV.exp(), 1)[:, 0]
    chosen_N = logprobs_NV.gather(1, drawn_N[:, None])[:, 0]
    found: list[tuple[int, float]] = [(0, 0.0)] * len(rows)
    told = zip(batch.sample_N.tolist(), drawn_N.tolist(), chosen_N.tolist(), strict=True)
    for index, token, logprob in told:
        found[index] = token, logprob
    return found


def credited(group: Sequence[TrainSample], c: LearnerConfig) -> list[TrainSample]:
    """A group's samples with the advantages that are the group's to compute."""
    of_group = group_advantage(c.advantage)
    if of_group is None:
        return list(group)
    if c.turn_discount is None:
        whole = of_group([s.reward for s in group])
        by_turn = [[a] * len(s.turn_lengths) for a, s in zip(whole, group, strict=True)]
    else:
        to_go = [rewards_to_go(s.rewards_by_turn, c.turn_discount) for s in group]
        by_turn = over_group(to_go, of_group)
    return [with_turn_advantages(s, turns) for s, turns in zip(group, by_turn, strict=True)]


def curve(folder: Path, setup: dict[str, Any], game: str, *, steps: int, seed: int) -> list[float]:
    """The mean worth of each step's games, before its update. It ends AFTER steps behind the one that has
    TARGET of the best."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = LearnerConfig.model_validate({"threads": 1, "record_tokens": False, **setup})
    learner = Learner(folder, config, temperature=1.0, keep_versions=0)
    worths: list[float] = []
    for step in range(1, steps + 1):
        tasks = [rng.random() for _ in range(GROUPS)]
        games = [GAMES[game](random.Random(t), rng) for t in tasks for _ in range(MEMBERS)]
        episodes = play(learner, games)
        samples = [e.sample(f"{step}/{i}", learner.version) for i, e in enumerate(episodes)]
        worths.append(fmean(g.worth() for g in games))
        hit = steps_to(worths, game)
        if hit is not None and step == hit + AFTER:
            break
        groups = [samples[at : at + MEMBERS] for at in range(0, len(samples), MEMBERS)]
        learner.step([s for group in groups for s in credited(group, config)])
    return worths


def steps_to(worths: Sequence[float], game: str) -> int | None:
    """The first step whose games, with those of the two before, have TARGET of the best as their mean."""
    for step in range(3, len(worths) + 1):
        if fmean(worths[step - 3 : step]) >= TARGET * BEST[game]:
            return step
    return None


def table_row(
    folder: Path, setup: dict[str, Any], game: str, *, label: str, steps: int, seeds: int
) -> str:
    """A line of the table that HEAD begins."""
    start = time.process_time()
    found = [curve(folder, setup, game, steps=steps, seed=seed) for seed in range(seeds)]
    seconds = (time.process_time() - start) / seeds
    hits = ", ".join(str(steps_to(w, game) or f"not in {steps}") for w in found)
    last = ", ".join(f"{fmean(w[-10:]) / BEST[game]:.3f}" for w in found)
    return f"| {game} | {label} | {hits} | {last} | {seconds:.0f} |"


def tiny_policy(folder: Path) -> Path:
    """A Qwen3-MoE of 1 MB with random weights."""
    text = [" ".join(str(n) for n in range(900))] * 20
    init_checkpoint(folder, family="qwen3_moe", preset="tiny", corpus=text, seed=1)
    return folder
