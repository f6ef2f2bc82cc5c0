"""From a finished group to training samples: advantages, masks, and who is left out and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.samples.ledger import Closed
from rollout.repetition import ends_in_repetition
from rollout.routing import Routing
from rollout.trajectory import ScoredTrajectory, Trajectory, Turn
from trainer.advantage import GROUP_ADVANTAGES, all_equal
from trainer.config import AdvantageName
from trainer.sample import TrainSample


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
) -> tuple[list[TrainSample], list[Dropped]]:
    """Samples of a group's judged members; a fault is dropped as failed, never trained on as a reward of 0.

    The baseline is over the judged members, whatever policy versions they come from (DORA, section 3.1).
    With `mask_truncated`, members that were cut off at the length limit are part of the baseline and give
    no sample (LongCat-Flash-Thinking, arXiv 2509.18883, section 3.2.2). An advantage that is not of a group
    is the learner's to compute: its samples carry rewards, need no others, and teach without variance too.
    """
    dropped = [
        Dropped((m.trajectory.id,), "failed", m.trajectory.stop_reason)
        for m in members
        if not m.trajectory.judged
    ]
    judged = [m for m in members if m.trajectory.judged]
    ids = tuple(m.trajectory.id for m in judged)
    rewards = [m.reward for m in judged]
    advantages = [0.0] * len(judged)
    if (of_group := GROUP_ADVANTAGES.get(advantage)) is not None:
        if len(judged) < 2:
            return [], [*dropped, *([Dropped(ids, "filtered", "no_baseline")] if ids else [])]
        if filter_zero_variance and all_equal(rewards):
            return [], [*dropped, Dropped(ids, "filtered", "zero_variance")]
        advantages = of_group(rewards)
    masked = {m.trajectory.id for m in judged if mask_truncated and cut_off(m.trajectory)}
    if masked:
        dropped.append(Dropped(tuple(id for id in ids if id in masked), "filtered", "truncated"))
    samples = [
        train_sample(m.trajectory, a, m.reward)
        for m, a in zip(judged, advantages, strict=True)
        if m.trajectory.id not in masked
    ]
    return samples, dropped


def cut_off(trajectory: Trajectory) -> bool:
    """True if the length limit ended the trajectory half-way; a loop has earned its low reward."""
    written = [token for turn in trajectory.turns for token in turn.completion_ids]
    return trajectory.stop_reason == "max_tokens" and not ends_in_repetition(written)


def train_sample(trajectory: Trajectory, advantage: float, reward: float = 0.0) -> TrainSample:
    """Lay a trajectory's turns end to end; only the policy's own tokens carry loss."""
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
        routing=_routing(trajectory.turns),
    )


def _routing(turns: Sequence[Turn]) -> Routing | None:
    """The turns' routing end to end, shape (tokens, MoE layers, experts per token); the last token's unknown.

    Each turn's begins with the last token of the turn before, so together they lack only the last of all.
    """
    known = next((turn.routing for turn in turns if turn.routing is not None), None)
    if known is None:
        return None
    unknown = np.full((1, *known.shape[1:]), np.iinfo(known.dtype).max, known.dtype)
    parts: list[Routing] = []
    for index, turn in enumerate(turns):
        tokens = len(turn.prompt_ids) + len(turn.completion_ids) - (index == 0)
        parts.append(np.repeat(unknown, tokens, 0) if turn.routing is None else turn.routing)
    return np.concatenate([*parts, unknown])
