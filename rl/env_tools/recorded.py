"""A record of an episode in the place of those whom nobody asks again: its user, and its judges."""

from collections.abc import Mapping, Sequence
from typing import cast

from envs.chat_model import ChatModel
from envs.env import Task
from envs.user import Fact, Said, UserFault
from reward.model_judge import find_model_judge
from reward.registry import GroupJudge, Judge, find_judge
from rl.env_table import EnvTable
from rl.models.judges import Judges, judges_of
from rollout.trajectory import Judgement, ScoredTrajectory, Trajectory


class RecordedUser:
    """A user's texts out of a record, said again in their order (`envs.user.User`)."""

    def __init__(self, t: Trajectory) -> None:
        every = [*t.opening, *(message for turn in t.turns for message in turn.observations)]
        self.left = [message for message in every if message.by]
        self.ended = t.stop_reason == "completed"

    async def open(self, goal: str, facts: Sequence[Fact] = (), profile: str = "") -> Said:
        return await self.answer(goal)

    async def answer(self, text: str) -> Said:
        if not self.left:
            raise UserFault("the record has no more texts of its user")
        said = self.left.pop(0)
        return Said(said.content, said.by, ended=self.ended and not self.left)


def judges_again(
    scored: ScoredTrajectory, table: EnvTable, models: Mapping[str, ChatModel] | None
) -> Judges:
    """The judges of a table, those that are not asked again as the record has them. models: that are asked;
    None: nobody is. Raises UnknownJudge."""
    each, groups = [find_judge(name) for name in table.judges], list[GroupJudge]()
    for one in table.judge:
        found = find_model_judge(one.id)
        if found.group:
            groups.append(_recorded_of_group(scored, one.label))
        elif found.asks and models is None:
            each.append(_recorded(scored, one.label))
        else:
            each += judges_of([one], models or {}).each
    return Judges(tuple(each), tuple(groups))


def _recorded(scored: ScoredTrajectory, label: str) -> Judge:
    """A judge that says what the record has of it."""
    given = {
        name: value
        for name, value in scored.rewards.items()
        if name == label or name.startswith(f"{label}/")
    }
    kept = next((one for one in scored.judgements if one.rewards == given), Judgement(given))

    async def judge(task: Task, trajectory: Trajectory) -> Judgement:
        return kept

    judge.__name__ = label
    return judge


def _recorded_of_group(scored: ScoredTrajectory, label: str) -> GroupJudge:
    one = _recorded(scored, label)

    async def judge(trajectories: Sequence[Trajectory]) -> list[Judgement]:
        return [cast(Judgement, await one(t.task, t)) for t in trajectories]

    judge.__name__ = label
    return judge
