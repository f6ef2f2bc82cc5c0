"""Rewards for length: a soft punishment of overlong trajectories, and a reward for short ones within a group.

In: a group's judged trajectories. Out: the same with one more named reward each, which is part of their sum;
what a fault ended is left as it is. A trajectory's length is what its policy wrote, all turns together.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import PositiveFloat, PositiveInt, model_validator

from rollout.trajectory import ScoredTrajectory
from trainer.section import Section


class OverlongConfig(Section):
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13).

    max_tokens: from this length on it is -weight. buffer: so many tokens before, it begins and grows
    linearly.
    """

    max_tokens: PositiveInt
    buffer: PositiveInt
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _makes_sense(self) -> "OverlongConfig":
        if self.buffer > self.max_tokens:
            raise ValueError(
                f"buffer ({self.buffer}) is the last part of max_tokens ({self.max_tokens}), and is longer"
            )
        return self


class ShortnessConfig(Section):
    """Reward for being short among one's group (Kimi k1.5, arXiv 2501.12599, section 2.3.3).

    weight: of 0.5 for the shortest of the group to -0.5 for the longest, linearly. solved: a trajectory of a
    smaller reward gets nothing for being short, and the punishment for being long.
    """

    weight: PositiveFloat
    solved: float = 1.0


class LengthConfig(Section):
    """Rewards for length, each where it is set: `overlong` and `shortness`."""

    overlong: OverlongConfig | None = None
    shortness: ShortnessConfig | None = None


def shaped(members: Sequence[ScoredTrajectory], c: LengthConfig) -> list[ScoredTrajectory]:
    """The members of a group with their rewards for length, named `overlong` and `shortness`."""
    judged = [i for i, m in enumerate(members) if m.trajectory.judged]
    lengths = [_length(members[i]) for i in judged]
    extra: dict[str, list[float]] = {}
    if c.overlong is not None:
        one = c.overlong
        extra["overlong"] = [
            one.weight * overlong(n, limit=one.max_tokens, buffer=one.buffer) for n in lengths
        ]
    if c.shortness is not None:
        solved = [members[i].reward >= c.shortness.solved for i in judged]
        extra["shortness"] = [c.shortness.weight * v for v in shortness(lengths, solved)]
    found = list(members)
    for place, index in enumerate(judged):
        own = {name: values[place] for name, values in extra.items()}
        member = members[index]
        found[index] = replace(
            member, rewards=member.rewards | own, reward=member.reward + sum(own.values())
        )
    return found


def overlong(length: int, *, limit: int, buffer: int) -> float:
    """0 up to limit - buffer, -1 beyond limit, linear between: 7 tokens of a limit of 8 with buffer 4 ->
    -0.75."""
    return -min(max(length - (limit - buffer), 0), buffer) / buffer


def shortness(lengths: Sequence[int], solved: Sequence[bool]) -> list[float]:
    """0.5 - (length - shortest) / (longest - shortest), at most 0 for one that is not solved; all 0 where all
    are as long. E.g. lengths 10, 20, 30, all solved -> [0.5, 0.0, -0.5]."""
    if not lengths or (spread := max(lengths) - min(lengths)) == 0:
        return [0.0] * len(lengths)
    scores = [0.5 - (n - min(lengths)) / spread for n in lengths]
    return [s if good else min(0.0, s) for s, good in zip(scores, solved, strict=True)]


def _length(member: ScoredTrajectory) -> int:
    return sum(len(turn.completion_ids) for turn in member.trajectory.turns)
