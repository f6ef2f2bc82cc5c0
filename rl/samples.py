"""From a finished group to training samples: advantages, masks, and who is left out and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev

import numpy as np

from rl.ledger import Closed
from rollout.routing import Routing
from rollout.trajectory import ScoredTrajectory, Trajectory, Turn
from trainer.advantage import ADVANTAGES
from trainer.config import AdvantageName
from trainer.sample import TrainSample


@dataclass(frozen=True)
class Dropped:
    """Trajectories that give no sample: ids, ledger outcome, reason."""

    ids: tuple[str, ...]
    outcome: Closed
    reason: str


def group_samples(
    members: Sequence[ScoredTrajectory], advantage: AdvantageName, *, filter_zero_variance: bool
) -> tuple[list[TrainSample], list[Dropped]]:
    """Samples of a group's judged members; a fault is dropped as failed, never trained on as a reward of 0.

    The baseline is over the judged members, whatever policy versions they come from (DORA, section 3.1).
    """
    dropped = [
        Dropped((m.trajectory.id,), "failed", m.trajectory.stop_reason)
        for m in members
        if not m.trajectory.judged
    ]
    judged = [m for m in members if m.trajectory.judged]
    ids = tuple(m.trajectory.id for m in judged)
    if len(judged) < 2:
        return [], [*dropped, *([Dropped(ids, "filtered", "no_baseline")] if ids else [])]
    rewards = [m.reward for m in judged]
    if filter_zero_variance and pstdev(rewards) == 0:
        return [], [*dropped, Dropped(ids, "filtered", "zero_variance")]
    advantages = ADVANTAGES[advantage](rewards)
    samples = [train_sample(m.trajectory, a) for m, a in zip(judged, advantages, strict=True)]
    return samples, dropped


def train_sample(trajectory: Trajectory, advantage: float) -> TrainSample:
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
