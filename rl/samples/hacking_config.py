"""`[hacking]`: over how much a run looks for rewards that are earned without the task, and what it tells."""

from pydantic import Field, PositiveFloat

from rollout.config import Section


class HackingConfig(Section):
    """How a judged environment's reward is held against what does not train (`rl.samples.reward_hacking`).

    window: groups of an environment over which its meters look. errors: standard errors by which reward and
    signal have to part for an alarm. explained: share of the reward's variance within groups that length and
    format may explain (1: never an alarm).
    """

    window: int = Field(default=64, ge=16)
    errors: PositiveFloat = 4
    explained: float = Field(default=0.6, gt=0, le=1)
