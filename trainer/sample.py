"""One sequence to train on, and what was computed of it: what crosses to the learner and back. No torch."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class TrainSample:
    """One sequence to train on; the four lists have one entry per token of `token_ids`.

    loss_mask: True where the policy wrote the token. rollout_logprobs, advantages, versions mean
    something only there: the engine's log-prob, the token's advantage, the policy version that wrote it.
    teacher_logprobs: one for each of the policy's tokens, under a teacher that a service scored by; empty
    where none did. trajectory: its id where it gave several samples, whose tokens count together as one's in
    the loss, or "".
    reward: the trajectory's, for advantages that are not of a group.
    turn_rewards: the part of it that each turn has earned, what comes with the end in the last one; empty
    where all of it comes with the end. A turn is a maximal run of True in loss_mask.
    routing: the experts that the engine chose for each token, shape (tokens, MoE layers, experts per token);
    the largest value of its type where it computed none, as for the last token. None where nothing is known.
    """

    id: str
    env: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    rollout_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    versions: tuple[int, ...]
    reward: float = 0.0
    turn_rewards: tuple[float, ...] = ()
    routing: "npt.NDArray[np.unsignedinteger[Any]] | None" = field(default=None, compare=False)
    trajectory: str = ""
    teacher_logprobs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {
            len(self.token_ids),
            len(self.loss_mask),
            len(self.rollout_logprobs),
            len(self.advantages),
            len(self.versions),
        }
        if len(lengths) != 1:
            raise ValueError(f"sample {self.id}: its lists differ in length: {sorted(lengths)}")
        if self.loss_mask[0]:
            raise ValueError(f"sample {self.id}: the first token cannot be predicted from anything")
        if self.teacher_logprobs and len(self.teacher_logprobs) != self.num_policy_tokens:
            raise ValueError(
                f"sample {self.id}: {len(self.teacher_logprobs)} log-probs of a teacher for its "
                f"{self.num_policy_tokens} tokens"
            )
        if self.turn_rewards and len(self.turn_rewards) != (turns := len(self.turn_lengths)):
            raise ValueError(
                f"sample {self.id}: {len(self.turn_rewards)} rewards for its {turns} turns"
            )
        if self.routing is not None:
            shape, kind = self.routing.shape, self.routing.dtype
            if len(shape) != 3 or shape[0] != len(self.token_ids) or kind.kind != "u":
                raise ValueError(
                    f"sample {self.id}: its routing is {kind} of shape {shape}; it has to be unsigned "
                    f"integers of shape ({len(self.token_ids)}, MoE layers, experts per token)"
                )

    @property
    def policy_versions(self) -> tuple[int, ...]:
        """Versions of the policy's own tokens, in order."""
        return tuple(v for v, m in zip(self.versions, self.loss_mask, strict=True) if m)

    @property
    def num_policy_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(self.loss_mask)

    @property
    def turn_lengths(self) -> list[int]:
        """Policy tokens of each turn, in order: loss_mask [F, T, T, F, T] -> [2, 1]."""
        return [sum(run) for wrote, run in groupby(self.loss_mask) if wrote]

    @property
    def rewards_by_turn(self) -> list[float]:
        """The reward of each turn, what comes with the end in the last one."""
        turns = len(self.turn_lengths)
        return list(self.turn_rewards) or [0.0] * (turns - 1) + [self.reward] * (turns > 0)


@dataclass(frozen=True)
class TokenScores:
    """Scores of one sample that was trained on: N numbers per list, one per policy token, in order.

    learner_logprobs: under the version that wrote the token, by the learner's own weights; None where it has
    kept none. entropies: of the present policy there, in nats, before the update. experts: those that the
    learner's pass chose to predict the token, (N, layers with a router, experts per token); empty for a
    policy without any, and for one of more than `MOST_CHOICES` choices a token.
    """

    id: str
    advantages: list[float]
    learner_logprobs: list[float | None]
    entropies: list[float]
    experts: "npt.NDArray[np.signedinteger[Any]]"
