"""`dorado judge eval`: a judge's verdicts on labelled answers, and what they are worth.

In: labelled rows, a judge, a model. Out: figures. A row on which the judge fails is counted as a fault, and
is no wrong verdict.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from envs.chat_model import ChatModel
from reward.judges.prompt import find_prompt
from reward.judges.ranking import RankingSettings, compared
from reward.judges.shown import words
from reward.model_judge import ModelJudge, Vote, bound, check_settings
from reward.registry import Judge
from rl.judge_tools.agreement import Seen, figures
from rl.judge_tools.labelled import Labelled, Pair, Single, trajectory_of
from rollout.trajectory import Judgement

# The temperature at which a row is judged again.
AGAIN = 0.7


@dataclass(frozen=True)
class Evaluated:
    """Figures of a judge. faults: sentences, one for each row without a verdict."""

    figures: dict[str, float]
    seen: tuple[Seen, ...]
    faults: tuple[str, ...]
    version: str


async def evaluate(
    rows: Sequence[Labelled],
    judge: ModelJudge,
    config: Mapping[str, object],
    model: ChatModel,
    *,
    again: int = 0,
    at_once: int = 16,
) -> Evaluated:
    """Judge every row `again` + 1 times. Raises BadSettings."""
    check_settings(judge, config)
    warm = {**config, "temperature": AGAIN} if judge.settings else dict(config)
    judges = [_RowJudge(judge, config, model)]
    judges += [_RowJudge(judge, warm, Vote(model, number + 1)) for number in range(again)]
    places = asyncio.Semaphore(at_once)

    async def look(row: Labelled) -> Seen | str:
        async with places:
            try:
                first, *rest = [await one.verdict(row) for one in judges]
            except Exception as error:  # the model's and the judge's: a row without a verdict
                return str(error) or type(error).__name__
        verdicts = tuple(one.value for one in (first, *rest))
        label = row.label if isinstance(row, Single) else 1.0
        pair = isinstance(row, Pair)
        return Seen(label, verdicts, pair, _longer(row), first.swayed, first.first)

    found = await asyncio.gather(*map(look, rows))
    seen = tuple(one for one in found if isinstance(one, Seen))
    faults = tuple(one for one in found if isinstance(one, str))
    numbers = figures(seen) if seen else {"count": 0.0}
    return Evaluated(numbers | {"faults": float(len(faults))}, seen, faults, judges[0].version)


@dataclass(frozen=True)
class _Verdict:
    value: float
    swayed: float | None = None
    first: float | None = None


class _RowJudge:
    """A judge of rows: a pair is compared, or both of its answers are judged for themselves."""

    def __init__(self, judge: ModelJudge, config: Mapping[str, object], model: ChatModel) -> None:
        self.model = model
        self.settings = check_settings(judge, config)
        self.each = None if judge.group else cast(Judge, bound(judge, judge.id, [model], config))
        self.version = ""

    async def verdict(self, row: Labelled) -> _Verdict:
        """Raises what the judge does."""
        if isinstance(row, Single):
            if self.each is None:
                raise ValueError("a judge of groups needs pairs: chosen and rejected")
            return _Verdict(await self._reward(row.question, row.answer, row))
        if self.each is None:
            return await self._compare(row)
        chosen = await self._reward(row.question, row.chosen, row)
        rejected = await self._reward(row.question, row.rejected, row)
        return _Verdict(0.5 if chosen == rejected else float(chosen > rejected))

    async def _reward(self, question: str, answer: str, row: Labelled) -> float:
        assert self.each is not None, "a judge of single answers"
        trajectory = trajectory_of(question, answer, row.data)
        found = await self.each(trajectory.task, trajectory)
        if isinstance(found, Judgement):
            self.version = found.version
            found = found.rewards
        return next(iter(found.values()))

    async def _compare(self, row: Pair) -> _Verdict:
        if not isinstance(self.settings, RankingSettings):
            raise ValueError("of the judges of groups, `ranking` alone can be held to pairs")
        prompt = find_prompt("ranking", self.settings.prompt)
        self.version = prompt.version
        made = await compared(
            row.question, row.chosen, row.rejected, self.model, self.settings, prompt
        )
        named = [one.found["better"] for one in made.verdicts]
        decided = [one for one in named if one != "even"]
        first = sum(one == "first" for one in decided) / len(decided) if decided else None
        return _Verdict(made.share, float(made.swayed), first)


def _longer(row: Labelled) -> int:
    if isinstance(row, Single):
        return words(row.answer)
    return words(row.chosen) - words(row.rejected)
