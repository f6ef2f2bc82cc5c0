"""Records that cross between the run and its rollout controllers: control data only."""

from dataclasses import dataclass, field

from envs.env import Task
from rl.samples.answer_form import answer_form
from rl.samples.cache_use import CacheUse
from rl.samples.samples import Dropped
from rollout.trajectory import ScoredTrajectory, StopReason


@dataclass(frozen=True)
class GroupSpec:
    """A task to be played once by each of `ids`. train: whether samples are wanted. version: the policy
    version that plays all of it; None: whatever is served."""

    id: str
    env: str
    task: Task
    ids: tuple[str, ...]
    train: bool
    version: int | None = None


@dataclass(frozen=True)
class MemberReport:
    """One trajectory in numbers; its tokens are in `file` at byte `offset`.

    phase_seconds: time spent per phase. metrics: of the judges, no rewards. form: of the final answer
    (`rl.samples.answer_form`), where the environment is watched for hacking.
    """

    id: str
    stop_reason: StopReason
    judged: bool
    reward: float
    rewards: dict[str, float]
    versions: tuple[int, ...]
    num_turns: int
    num_tokens: int
    num_completion_tokens: int
    num_malformed: int
    num_bad_calls: int
    phase_seconds: dict[str, float]
    fault: str
    file: str
    offset: int
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    form: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class GroupReport:
    """A finished group: its members, which of them gave samples, and why the others did not.

    reprefilled_tokens: tokens that engines computed again since the controller's report before; cache_use:
    what they found in their caches since then. retries:
    times that an episode was begun on another host.
    """

    spec: GroupSpec
    members: tuple[MemberReport, ...]
    sample_ids: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    start: float
    end: float
    reprefilled_tokens: int = 0
    cache_use: CacheUse = field(default_factory=CacheUse)
    retries: int = 0


def member_report(
    scored: ScoredTrajectory, file: str, offset: int, *, watched: bool = False
) -> MemberReport:
    """The numbers of one trajectory. watched: those of its answer's form, too."""
    t = scored.trajectory
    seconds: dict[str, float] = {}
    for phase in t.phases:
        seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.seconds
    return MemberReport(
        id=t.id,
        stop_reason=t.stop_reason,
        judged=t.judged,
        reward=scored.reward,
        rewards=scored.rewards,
        versions=t.versions,
        num_turns=len(t.turns),
        num_tokens=t.num_tokens,
        num_completion_tokens=t.num_completion_tokens,
        num_malformed=sum(turn.malformed for turn in t.turns),
        num_bad_calls=sum(turn.bad_calls for turn in t.turns),
        phase_seconds=seconds,
        fault=t.fault,
        file=file,
        offset=offset,
        metrics=scored.metrics,
        form=answer_form(t.turns[-1].text, t.num_completion_tokens) if watched and t.turns else {},
    )
