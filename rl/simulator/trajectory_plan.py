"""A trajectory and a group to come, as numbers of tokens and seconds: what a simulated run plays."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One trajectory to come: tokens written per turn, and seconds of the tool after each but the last."""

    prompt_tokens: int
    turns: tuple[int, ...]
    tool_seconds: tuple[float, ...]
    tool_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole trajectory."""
        return self.prompt_tokens + sum(self.turns) + self.tool_tokens * len(self.tool_seconds)


@dataclass(frozen=True)
class GroupPlan:
    """The trajectories of one task. filtered: whether it gives no gradient."""

    members: tuple[Plan, ...]
    filtered: bool
