"""One sequence to train on: what crosses from rollouts to the learner. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSample:
    """One sequence to train on; the four lists have one entry per token of `token_ids`.

    loss_mask: True where the policy wrote the token. rollout_logprobs, advantages, versions mean
    something only there: the engine's log-prob, the token's advantage, the policy version that wrote it.
    reward: the trajectory's, for advantages that are not of a group.
    """

    id: str
    env: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    rollout_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    versions: tuple[int, ...]
    reward: float = 0.0

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

    @property
    def policy_versions(self) -> tuple[int, ...]:
        """Versions of the policy's own tokens, in order."""
        return tuple(v for v, m in zip(self.versions, self.loss_mask, strict=True) if m)

    @property
    def num_policy_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(self.loss_mask)
