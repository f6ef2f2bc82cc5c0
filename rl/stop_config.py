"""`[stop]`: when training ends before its last step, or says that it should.

Patience with held-out results, a budget, and a guard against collapse. A rule of the guard looks at the last
`steps` learner steps: it is broken where every one of them is beyond its bound, so one bad step is nothing.
"""

import re
from collections.abc import Collection
from typing import Literal

from pydantic import Field, PositiveInt

from rollout.config import Section

OnCollapse = Literal["warn", "end", "off"]
# Results of an evaluation that are better where they are higher: of one environment, and of all.
_OF_ENV = r"pass_rate|low|high|reward|pass_at_(k|\d+)"
_OF_ALL = r"mean_(pass_rate|low|high)"


class Floor(Section):
    """A collapse is below `below` in each of the last `steps` steps."""

    below: float
    steps: PositiveInt = 10

    def broken(self, value: float) -> bool:
        """True if a step's value is beyond the bound."""
        return value < self.below

    @property
    def said(self) -> str:
        """The bound for a reader."""
        return f"below {self.below:g}"


class Ceiling(Section):
    """A collapse is above `above` in each of the last `steps` steps."""

    above: float
    steps: PositiveInt = 10

    def broken(self, value: float) -> bool:
        """True if a step's value is beyond the bound."""
        return value > self.above

    @property
    def said(self) -> str:
        """The bound for a reader."""
        return f"above {self.above:g}"


class EntropyFloor(Floor):
    """Floor of the entropy per token, in nats."""

    below: float = 0.002
    steps: PositiveInt = 20


class ClippedCeiling(Ceiling):
    """Ceiling of the share of tokens whose gradient the clipping ended."""

    above: float = 0.3


class ParityCeiling(Ceiling):
    """Ceiling of the mean difference of the engine's and the learner's log-probs."""

    above: float = 0.2


class ZeroVarianceCeiling(Ceiling):
    """Ceiling of the share of played groups whose rewards are all equal."""

    above: float = 0.98
    steps: PositiveInt = 20


class StopConfig(Section):
    """Rules that end training early; 0 and a missing floor: no such rule.

    patience: evaluations in a row without a higher `metric` after which training ends. max_steps,
    max_seconds, max_tokens: of the run's steps, of their time, and of tokens played in them, the parts before
    a resume included. on_collapse: what a broken rule of the guard does; "end" writes a checkpoint first.
    reward: floor of the mean reward of all environments.
    """

    patience: int = Field(default=0, ge=0)
    metric: str = "eval/mean_pass_rate"
    max_steps: int = Field(default=0, ge=0)
    max_seconds: float = Field(default=0, ge=0)
    max_tokens: int = Field(default=0, ge=0)
    on_collapse: OnCollapse = "warn"
    entropy: EntropyFloor = EntropyFloor()
    clipped: ClippedCeiling = ClippedCeiling()
    parity: ParityCeiling = ParityCeiling()
    zero_variance: ZeroVarianceCeiling = ZeroVarianceCeiling()
    reward: Floor | None = None

    def reads(self, envs: Collection[str]) -> bool:
        """True if `metric` is one of evaluations of these environments."""
        kind, _, rest = self.metric.partition("/")
        env, _, name = rest.rpartition("/")
        if kind != "eval" or (env and env not in envs):
            return False
        return bool(re.fullmatch(_OF_ENV if env else _OF_ALL, name))
