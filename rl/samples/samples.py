"""From a finished group to training samples: advantages, masks, and who is left out and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import fsum

import numpy as np

from rl.samples.ledger import Closed
from rollout.repetition import ends_in_repetition
from rollout.routing import Routing
from rollout.trajectory import ScoredTrajectory, Trajectory, Turn, segment_id
from trainer.advantage import group_advantage
from trainer.config import AdvantageName
from trainer.sample import TrainSample
from trainer.turn_advantage import (
    over_group,
    rewards_to_go,
    with_turn_advantages,
    without_variance,
)


@dataclass(frozen=True)
class Dropped:
    """Trajectories that give no sample: ids, ledger outcome, reason."""

    ids: tuple[str, ...]
    outcome: Closed
    reason: str


def group_samples(
    members: Sequence[ScoredTrajectory],
    advantage: AdvantageName,
    *,
    filter_zero_variance: bool,
    mask_truncated: bool = False,
    turn_discount: float | None = None,
) -> tuple[list[TrainSample], list[Dropped]]:
    """Samples of a group's judged members; a fault is dropped as failed, never trained on as a reward of 0.

    The baseline is over the judged members, whatever policy versions they come from (DORA, section 3.1).
    With `mask_truncated`, members that were cut off at the length limit are part of the baseline and give
    no sample (LongCat-Flash-Thinking, arXiv 2509.18883, section 3.2.2). An advantage that is not of a group
    is the learner's to compute: its samples carry rewards, need no others, and teach without variance too.
    turn_discount: gives turns advantages of their own (`trainer.turn_advantage`).
    """
    dropped = [
        Dropped((m.trajectory.id,), "failed", m.trajectory.stop_reason)
        for m in members
        if not m.trajectory.judged
    ]
    judged = [m for m in members if m.trajectory.judged]
    ids = tuple(m.trajectory.id for m in judged)
    samples = [train_sample(m.trajectory, 0.0, m.reward, m.turn_rewards) for m in judged]
    if (of_group := group_advantage(advantage)) is not None:
        if len(judged) < 2:
            return [], [*dropped, *([Dropped(ids, "filtered", "no_baseline")] if ids else [])]
        if turn_discount is None:
            rewards = [[s.reward] for s in samples]
        else:
            rewards = [rewards_to_go(s.rewards_by_turn, turn_discount) for s in samples]
        if filter_zero_variance and without_variance(rewards):
            return [], [*dropped, Dropped(ids, "filtered", "zero_variance")]
        found = over_group(rewards, of_group)
        samples = [
            with_turn_advantages(s, a if turn_discount is not None else a * len(s.turn_lengths))
            for s, a in zip(samples, found, strict=True)
        ]
    masked = {m.trajectory.id for m in judged if mask_truncated and cut_off(m.trajectory)}
    if masked:
        dropped.append(Dropped(tuple(id for id in ids if id in masked), "filtered", "truncated"))
    whole = {m.trajectory.id: m.trajectory for m in judged if m.trajectory.id not in masked}
    parts = [by_segment(s, whole[s.id], turn_discount) for s in samples if s.id in whole]
    return [part for one in parts for part in one], dropped


def cut_off(trajectory: Trajectory) -> bool:
    """True if the length limit ended the trajectory half-way; a loop has earned its low reward."""
    written = [token for turn in trajectory.turns for token in turn.completion_ids]
    return trajectory.stop_reason == "max_tokens" and not ends_in_repetition(written)


def train_sample(
    trajectory: Trajectory,
    advantage: float,
    reward: float = 0.0,
    turn_rewards: Sequence[float] = (),
) -> TrainSample:
    """Lay a trajectory's turns end to end, of all its segments; only the policy's own tokens carry loss.

    turn_rewards: the part of `reward` that each turn has earned, where turns have.
    """
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    versions: list[int] = []
    for turn in trajectory.turns:
        for token in turn.prompt_ids:
            ids.append(token)
            mask.append(False)
            logprobs.append(0.0)
            versions.append(-1)
        ids += turn.completion_ids
        mask += [True] * len(turn.completion_ids)
        logprobs += turn.rollout_logprobs
        for span in turn.versions:
            versions += [span.version] * (span.end - span.start)
    return TrainSample(
        id=trajectory.id,
        env=trajectory.env,
        token_ids=tuple(ids),
        loss_mask=tuple(mask),
        rollout_logprobs=tuple(logprobs),
        advantages=tuple(advantage if m else 0.0 for m in mask),
        versions=tuple(versions),
        reward=reward,
        turn_rewards=_by_run(trajectory.turns, reward, turn_rewards) if turn_rewards else (),
        routing=_routing(trajectory),
    )


def by_segment(
    sample: TrainSample, trajectory: Trajectory, discount: float | None = None
) -> list[TrainSample]:
    """Cut a trajectory's sample into one for each of its segments, `ID`, `ID~1`, `ID~2`, …: the tokens of one
    are no context of another. All have the trajectory's advantages, reward and weight in the loss.

    A segment's last turn has what it earned and the later segments' rewards, those at a `discount` per turn
    where there is one: what a turn leads to is no less for a context that was rewritten behind it.
    """
    segments = trajectory.segments
    if len(segments) < 2:
        return [sample]
    lengths = [sum(len(t.prompt_ids) + len(t.completion_ids) for t in one) for one in segments]
    parts: list[TrainSample] = []
    for number, (start, end) in enumerate(pairwise(accumulate(lengths, initial=0))):
        part = replace(
            sample,
            id=segment_id(sample.id, number),
            token_ids=sample.token_ids[start:end],
            loss_mask=sample.loss_mask[start:end],
            rollout_logprobs=sample.rollout_logprobs[start:end],
            advantages=sample.advantages[start:end],
            versions=sample.versions[start:end],
            turn_rewards=(),
            routing=None if sample.routing is None else sample.routing[start:end],
            trajectory=sample.id,
        )
        parts.append(part)
    if not sample.turn_rewards and discount is None:
        return parts
    counts = [len(part.turn_lengths) for part in parts]
    earned = _by_part(sample.rewards_by_turn, counts, 1.0 if discount is None else discount)
    return [replace(part, turn_rewards=own) for part, own in zip(parts, earned, strict=True)]


def _by_part(
    rewards: Sequence[float], counts: Sequence[int], discount: float
) -> list[tuple[float, ...]]:
    """Rewards of turns in parts of so many turns, the rewards behind a part in its last turn: (1, 0, 2) in
    parts of 2 and 1 at a discount of 0.5 -> [(1, 1), (2,)]."""
    to_go = [*rewards_to_go(rewards, discount), 0.0]
    found: list[tuple[float, ...]] = []
    for start, end in pairwise(accumulate(counts, initial=0)):
        own = rewards[start:end]
        found.append((*own[:-1], own[-1] + discount * to_go[end]) if own else ())
    return found


def _by_run(turns: Sequence[Turn], reward: float, earned: Sequence[float]) -> tuple[float, ...]:
    """Rewards of a sample's turns, which are runs of the policy's tokens: a turn without a token gives its
    reward to the one before, and the last one has what comes with the end."""
    found: list[float] = []
    apart = True
    for turn, value in zip(turns, earned, strict=True):
        apart |= bool(turn.prompt_ids)
        if turn.completion_ids and apart:
            found.append(value)
            apart = False
        elif found:
            found[-1] += value
    return tuple(found and [*found[:-1], reward - fsum(found[:-1])])


def _routing(trajectory: Trajectory) -> Routing | None:
    """The turns' routing end to end, shape (tokens, MoE layers, experts per token); unknown of the last token
    of each segment.

    Each turn's begins with the last token of the turn before, so a segment's lack only the last of all.
    """
    known = next((turn.routing for turn in trajectory.turns if turn.routing is not None), None)
    if known is None:
        return None
    unknown = np.full((1, *known.shape[1:]), np.iinfo(known.dtype).max, known.dtype)
    parts: list[Routing] = []
    for turns in trajectory.segments:
        for index, turn in enumerate(turns):
            tokens = len(turn.prompt_ids) + len(turn.completion_ids) - (index == 0)
            parts.append(np.repeat(unknown, tokens, 0) if turn.routing is None else turn.routing)
        parts.append(unknown)
    return np.concatenate(parts)
