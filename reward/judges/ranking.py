"""Ranking: the answers of a group compared in pairs, each pair in both orders, within a fixed budget.

`circular`: every answer is compared equally often, first with its neighbours on a circle that the seed
draws, then with those further away; the reward is its mean share of the wins. `knockout`: losers go out, the
reward is the share of the others that it outlived; one comparison fewer than there are answers.
A model that names the first or the second answer whatever they are is even in both orders, and its metric
`position_bias` is 1.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from envs.chat_model import ChatModel
from envs.prompt import Prompt, marked
from reward.judges.prompt import find_prompt
from reward.judges.shown import answer_of, question_of, words
from reward.judges.verdict import Verdict, one_of, record, verdict
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

FIRST, SECOND, EVEN = "first", "second", "even"
SHARE = {FIRST: 1.0, SECOND: 0.0, EVEN: 0.5}


class RankingSettings(JudgeSettings):
    """criterion: by what an answer is better. comparisons: most of them in a group, of two questions each.

    length_penalty: what an answer that has a hundred words more than the other loses of its share of the win.
    """

    criterion: str = (
        "it answers the question better: it is right, complete, clear and no longer than needed"
    )
    method: Literal["circular", "knockout"] = "circular"
    comparisons: int = Field(default=16, ge=1)
    length_penalty: float = Field(default=0.0, ge=0, le=1)
    reasons: bool = True


@dataclass(frozen=True)
class Comparison:
    """Two answers compared. share: of the win that the first has, over both orders, 1 for all of it.

    swayed: the two orders named the same place, and so different answers.
    """

    share: float
    swayed: bool
    verdicts: tuple[Verdict, Verdict]


async def compared(
    question: str,
    first: str,
    second: str,
    model: ChatModel,
    settings: RankingSettings,
    prompt: Prompt,
) -> Comparison:
    """Compare two answers to a question in both orders. Raises ModelFault."""
    schema = record(settings.reasons, better=one_of(FIRST, SECOND, EVEN))

    async def ask(one: str, other: str) -> Verdict:
        most = settings.max_characters
        values = {
            "question": marked("question", question, most),
            "first": marked("first", one, most),
            "second": marked("second", other, most),
            "criterion": settings.criterion,
        }
        return await verdict(model, prompt, values, schema, settings)

    here, there = await asyncio.gather(ask(first, second), ask(second, first))
    places = (str(here.found["better"]), str(there.found["better"]))
    share = (SHARE[places[0]] + 1.0 - SHARE[places[1]]) / 2
    more = (words(first) - words(second)) / 100
    share = min(1.0, max(0.0, share - settings.length_penalty * more))
    return Comparison(share, places[0] == places[1] != EVEN, (here, there))


@model_judge(RankingSettings, group=True)
async def ranking(
    trajectories: Sequence[Trajectory], model: ChatModel, settings: RankingSettings
) -> list[Judgement]:
    """Rank a group's final answers. Raises ModelFault."""
    prompt = find_prompt("ranking", settings.prompt)
    question, answers = question_of(trajectories[0]), [answer_of(one) for one in trajectories]

    async def compare(one: int, other: int) -> Comparison:
        if answers[one] == answers[other]:
            nobody = Verdict({"better": EVEN}, "", True)
            return Comparison(0.5, False, (nobody, nobody))
        return await compared(question, answers[one], answers[other], model, settings, prompt)

    seed = hashlib.sha256("\n".join([question, *answers]).encode()).digest()
    order = random.Random(seed).sample(range(len(answers)), len(answers))
    if settings.method == "knockout":
        rewards, made = await _knockout(order, compare, settings.comparisons)
    else:
        pairs = circular(order, settings.comparisons)
        found = await asyncio.gather(*(compare(one, other) for one, other in pairs))
        made = dict(zip(pairs, found, strict=True))
        rewards = shares(len(answers), made)
    return [
        _judgement(index, reward, answers, made, prompt.version)
        for index, reward in enumerate(rewards)
    ]


def circular(order: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Pairs of neighbours on the circle, then of those two apart, and so on, up to so many."""
    count = len(order)
    pairs: list[tuple[int, int]] = []
    for apart in range(1, count // 2 + 1):
        ring = [(order[i], order[(i + apart) % count]) for i in range(count)]
        # Half-way round each pair comes twice.
        pairs += ring[: count // 2] if 2 * apart == count else ring
    return pairs[:most]


def shares(count: int, made: dict[tuple[int, int], Comparison]) -> list[float]:
    """Mean share of the wins of each answer; 0.5 for one that was compared with none."""
    won: list[list[float]] = [[] for _ in range(count)]
    for (one, other), comparison in made.items():
        won[one].append(comparison.share)
        won[other].append(1.0 - comparison.share)
    return [sum(own) / len(own) if own else 0.5 for own in won]


async def _knockout(
    order: Sequence[int], compare: Callable[[int, int], Awaitable[Comparison]], most: int
) -> tuple[list[float], dict[tuple[int, int], Comparison]]:
    """Rounds of pairs; those who stay when the budget is spent are all first."""
    made: dict[tuple[int, int], Comparison] = {}
    left, out = list(order), list[list[int]]()
    while len(left) > 1 and len(made) + len(left) // 2 <= most:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        found = await asyncio.gather(*(compare(one, other) for one, other in pairs))
        made |= dict(zip(pairs, found, strict=True))
        lost = [
            other if c.share >= 0.5 else one
            for (one, other), c in made.items()
            if (one, other) in pairs
        ]
        out.append(lost)
        left = [one for one in left if one not in lost]
    rewards, behind = [0.5] * len(order), 0
    for group in (*out, left):
        # Of the others, those that went out earlier; equals count half.
        for one in group:
            rewards[one] = (behind + (len(group) - 1) / 2) / max(1, len(order) - 1)
        behind += len(group)
    return (rewards if len(order) > 1 else [0.5]), made


def _judgement(
    index: int,
    reward: float,
    answers: Sequence[str],
    made: dict[tuple[int, int], Comparison],
    version: str,
) -> Judgement:
    own = [(pair, found) for pair, found in made.items() if index in pair]
    verdicts = [one for _, found in own for one in found.verdicts if one.model]
    unlike = [(p, c) for p, c in made.items() if words(answers[p[0]]) != words(answers[p[1]])]
    longer = [
        c.share if words(answers[one]) > words(answers[other]) else 1.0 - c.share
        for (one, other), c in unlike
    ]
    asked = [found for _, found in own if found.verdicts[0].model]
    metrics = {"comparisons": float(len(own)), "words": float(words(answers[index]))}
    if asked:
        metrics["position_bias"] = sum(found.swayed for found in asked) / len(asked)
    if longer:
        metrics["longer_wins"] = sum(longer) / len(longer)
    return Judgement(
        {"ranking": reward},
        metrics=metrics,
        version=version,
        models=tuple(dict.fromkeys(one.model for one in verdicts)),
        reasons=tuple(f"{v.found['better']}: {v.found.get('reason', '')}" for v in verdicts[:4]),
        asked=len(verdicts),
        cached=sum(one.cached for one in verdicts),
    )
