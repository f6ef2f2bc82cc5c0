"""Advantages per turn: a turn is credited with the rewards from it on, and not with those before it.

In: rewards of each turn of a trajectory, what comes with its end added to the last one. Out: an advantage for
each turn, which each of its tokens has. What a turn did not bring about is noise in its gradient; without it
the expected gradient stays the same (policy gradient theorem, Sutton et al. 1999, theorem 1), as it does with
a baseline that the turn's own action has no part in. A discount below 1 changes what is learned.

`trainer.critic` has the turns of an advantage that needs a critic.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from trainer.advantage import all_equal, reinforce_pp
from trainer.sample import TrainSample


def rewards_to_go(rewards: Sequence[float], discount: float) -> list[float]:
    """G_k = r_k + discount G_(k+1) of each turn, e.g. rewards (1, 0, 2) at 0.5 -> [1.5, 1.0, 2.0]."""
    found: list[float] = []
    later = 0.0
    for reward in reversed(rewards):
        later = reward + discount * later
        found.append(later)
    return found[::-1]


def over_group(
    to_go: Sequence[Sequence[float]], advantage: Callable[[Sequence[float]], list[float]]
) -> list[list[float]]:
    """Advantages of the turns of a group's members, turn k of each relative to turn k of the others.

    to_go: per member, the rewards from each turn on. advantage: that of a group (`GROUP_ADVANTAGES`). A
    member that ended before turn k stands there with its last turn. So what a turn is compared with depends
    on no action of its own trajectory but by `advantage` itself, and where all rewards come with the end,
    each turn has its trajectory's advantage.
    """
    columns = [advantage(column) for column in _columns(to_go)]
    return [[columns[k][i] for k in range(len(turns))] for i, turns in enumerate(to_go)]


def without_variance(to_go: Sequence[Sequence[float]]) -> bool:
    """True if no turn of a group's members is better than the same one of the others."""
    return all(map(all_equal, _columns(to_go)))


def _columns(to_go: Sequence[Sequence[float]]) -> list[list[float]]:
    """Per turn, the rewards of all members from it on; of one that ended before, from its last turn on."""
    longest = max(map(len, to_go), default=0)
    return [
        [turns[min(k, len(turns) - 1)] if turns else 0.0 for turns in to_go] for k in range(longest)
    ]


def over_batch(samples: Sequence[TrainSample], discount: float) -> list[TrainSample]:
    """The batch with (G - mean) / std as advantages, mean and std over all its tokens, a token's G being the
    rewards from its turn on: `reinforce_pp` of turns."""
    to_go = [rewards_to_go(s.rewards_by_turn, discount) for s in samples]
    lengths = [length for s in samples for length in s.turn_lengths]
    left = iter(reinforce_pp([value for turns in to_go for value in turns], lengths))
    return [
        with_turn_advantages(s, [next(left) for _ in turns])
        for s, turns in zip(samples, to_go, strict=True)
    ]


def with_turn_advantages(sample: TrainSample, advantages: Sequence[float]) -> TrainSample:
    """The sample with an advantage for each of its turns on that turn's tokens."""
    turns = zip(sample.turn_lengths, advantages, strict=True)
    left = (value for length, value in turns for _ in range(length))
    return replace(sample, advantages=tuple(next(left) if m else 0.0 for m in sample.loss_mask))


# Advantages of a whole batch that can be given to turns; those of a group all can.
BATCH_TURN_ADVANTAGES: dict[str, Callable[[Sequence[TrainSample], float], list[TrainSample]]] = {
    "reinforce_pp": over_batch,
}
