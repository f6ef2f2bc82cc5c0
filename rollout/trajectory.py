"""Records of episodes: what a rollout leaves behind. All frozen; a later stage makes a new object.

A trajectory is one token sequence, its only segment, or several where its history was rewritten on the way. A
segment is its turns end to end: each turn's `prompt_ids` (what was appended before the policy wrote: the
opening, or the environment's messages) and `completion_ids` (what it wrote). The turns of a segment are
neighbours. What a later segment repeats of an earlier one is in its first turn's prompt, and teaches nothing.
"""

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from envs.env import Task
from envs.message import Message, ToolCall
from rollout.engine import FinishReason, VersionSpan

if TYPE_CHECKING:
    from rollout.routing import Routing

# Why a segment begins: the template drops earlier thoughts there, the policy has summed up the one before,
# all but the opening was discarded, or a client rewrote history. "": the turn goes on with its segment.
SegmentStart = Literal["", "thoughts", "summary", "discard", "branch"]
StopReason = Literal[
    "completed",  # the environment ended the episode
    "max_turns",  # we ended it: turns used up
    "max_tokens",  # we ended it: tokens used up, of one turn or of the trajectory
    "env_fault",  # the environment failed
    "engine_fault",  # an engine failed
    "host_fault",  # the environment's host failed
    "user_fault",  # the model that plays the user failed
    "judge_fault",  # a judge failed
    "timeout",  # the whole episode took too long
    "no_room",  # the opening alone fills episode.max_tokens: the policy never had a turn
    "crash",  # our own code failed
]
# Stops after which the reward means what it says. All others are faults, not answers.
JUDGED: frozenset[StopReason] = frozenset(("completed", "max_turns", "max_tokens"))


# Fields of turns and messages that are not written where they are empty.
_RARE = frozenset(("rewards", "segment", "begins", "summary", "reasoning", "by"))


@dataclass(frozen=True)
class Turn:
    """One exchange: what the policy saw new, what it wrote, what came back.

    text: the answer, without thought, calls and end mark. thought: the reasoning, which no judge and no
    environment reads. malformed: the completion opened a tool call that cannot be read. bad_calls: calls the
    environment refused (unknown tool, wrong arguments, an error of the tool). rewards: the parts of the
    environment's named rewards that this turn has earned. routing: the router's
    choices from the last token of the turn before (in the first turn, from the first token) to the last
    but one of this turn; None where routing is not captured. segment: the index of the token sequence that it
    is part of. begins: why a segment begins with this turn. summary: the policy was asked for a summary of
    the segment, which the environment does not see.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    engine: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    malformed: bool = False
    bad_calls: int = 0
    observations: tuple[Message, ...] = ()
    thought: str = ""
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    begins: SegmentStart = ""
    summary: bool = False
    routing: "Routing | None" = field(default=None, compare=False)
    segment: int = 0


def segment_id(trajectory: str, segment: int) -> str:
    """The name of a segment, which its sample and its requests to engines have: the first has its
    trajectory's."""
    return f"{trajectory}~{segment}" if segment else trajectory


@dataclass(frozen=True)
class Phase:
    """A stretch of an episode's time: `name` from `start` for `seconds` (unix time)."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Branch:
    """A segment that began where the history was rewritten: `Branch(1, 0, 4, "user", "Summary: …")`.

    parent: the segment that it has most in common with. message: the index of the first message that is
    another one than there, its role and the beginning of its text; -1 where the tools are.
    """

    segment: int
    parent: int
    message: int
    role: str
    text: str


@dataclass(frozen=True)
class Trajectory:
    """The record of one episode.

    env_rewards: the environment's own named rewards, those of its turns included; empty where it could not be
    judged. fault: what went wrong, in one sentence, and where there is one the first traceback. notes: facts
    of the environment's side, such as {"sandbox": "bubblewrap"}. branches: of an agent that rewrote its
    history. log: what an agent itself wrote, its last part where it is long.
    """

    id: str
    group: str
    env: str
    task: Task
    opening: tuple[Message, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    env_rewards: dict[str, float]
    phases: tuple[Phase, ...]
    fault: str = ""
    trace: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    log: str = ""

    @property
    def judged(self) -> bool:
        """True if the reward is the policy's own doing."""
        return self.stop_reason in JUDGED

    @property
    def versions(self) -> tuple[int, ...]:
        """The policy versions that wrote it, each once, in order."""
        return tuple(dict.fromkeys(s.version for t in self.turns for s in t.versions))

    @property
    def segments(self) -> tuple[tuple[Turn, ...], ...]:
        """Its turns by token sequence, in order."""
        return tuple(tuple(turns) for _, turns in groupby(self.turns, lambda t: t.segment))

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(t.prompt_ids) + len(t.completion_ids) for t in self.turns)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens the policy wrote."""
        return sum(len(t.completion_ids) for t in self.turns)


@dataclass(frozen=True)
class Judgement:
    """The findings of a judge that says more than rewards: `Judgement({"rubric": 0.8}, version="rubric.v1")`.

    rewards: by name, the parts that turns have earned included. turns: those parts by turn, each by name;
    empty where no turn has earned any. metrics: what is counted and is no reward. version: of the prompt, and
    the models that were asked. reasons: what they said. asked, cached: questions, and how many of them had
    been answered before.
    """

    rewards: dict[str, float]
    turns: tuple[dict[str, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    version: str = ""
    models: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    asked: int = 0
    cached: int = 0


@dataclass(frozen=True)
class ScoredTrajectory:
    """A judged trajectory with its named rewards and their weighted sum.

    turn_rewards: of each turn, the part of that sum which it has earned; the rest comes with the end. Empty
    where no turn has earned any. judgements: those of judges that say more than rewards.
    """

    trajectory: Trajectory
    rewards: dict[str, float]
    reward: float
    turn_rewards: tuple[float, ...] = ()
    judgements: tuple[Judgement, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of the judges that are no rewards."""
        return {name: value for one in self.judgements for name, value in one.metrics.items()}

    def as_json(self) -> str:
        """One line of trajectories.jsonl; routing, which would dwarf the rest, is not written."""
        task = self.trajectory.task
        # The file's key is older than the field's name. Readers find a line by its first key, `id`.
        fields = {k.replace("env_rewards", "evidence"): v for k, v in vars(self.trajectory).items()}
        record = {
            **fields,
            "task": {**vars(task), "id": task.id},
            "rewards": self.rewards,
            "reward": self.reward,
        }
        if self.turn_rewards:
            record["turn_rewards"] = self.turn_rewards
        if self.judgements:
            record["judgements"] = [vars(one) for one in self.judgements]
        # Nested records become objects as the encoder meets them; the tokens are not copied before.
        return json.dumps(record, default=_fields, separators=(",", ":"))


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a nested record, without routing, and without those that few turns and messages have."""
    return {
        name: value
        for name, value in vars(record).items()
        if name != "routing" and (value or name not in _RARE)
    }
