"""Principles tuned against an opponent, with a gate (arXiv 2508.21476, whose own loop takes every rewrite).

A round: the *generator* spoils answers in a named way, by rules of its own; the *detector* judges them by the
principles. Where it was fooled, and where it is wrong on labelled pairs, the *reflector* proposes changed
principles. A proposal is held to labelled pairs that nobody learns from: it is accepted only if it is better
there with confidence (the exact sign test on the pairs on which both part, shared out over all proposals),
else it is recorded and dropped. The generator's rules have no gate: it is the opponent.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from envs.chat_model import ChatModel, ModelFault
from envs.message import JsonObject
from envs.prompt import marked
from reward.judges.principles import (
    BAD,
    GOOD,
    MOST_PRINCIPLES,
    Principles,
    UnreadablePrinciples,
    detected,
    made,
)
from reward.judges.prompt import find_prompt
from reward.judges.verdict import Verdict, record, verdict
from reward.model_judge import JudgeSettings
from rl.judge_tools.agreement import interval, wins
from rl.judge_tools.labelled import Pair

STRING = {"type": "string"}
RULES = {"type": "array", "items": STRING, "minItems": 1, "maxItems": MOST_PRINCIPLES}


@dataclass(frozen=True)
class Case:
    """A text that was judged. said: the detector's verdict; right: what it should have been. why: how the
    generator spoiled it, "" for a labelled one."""

    question: str
    answer: str
    said: str
    right: str
    why: str = ""


@dataclass(frozen=True)
class Tried:
    """A proposal and what the gate found. better, worse: pairs on which it alone, or the old one alone, is
    right. chance: of so many better ones by luck. fault: why it could not be tried."""

    round: int
    principles: tuple[str, ...]
    accepted: bool
    better: int = 0
    worse: int = 0
    chance: float = 1.0
    fault: str = ""


@dataclass(frozen=True)
class Splits:
    """Labelled pairs: to learn from, for the gate, and for the figures at the end."""

    train: tuple[Pair, ...]
    gate: tuple[Pair, ...]
    test: tuple[Pair, ...]


@dataclass(frozen=True)
class Outcome:
    """The principles at the end. before, after: share of the test pairs judged right, with 95 % intervals."""

    principles: Principles
    flaws: tuple[str, ...]
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    tried: tuple[Tried, ...] = field(default_factory=tuple)


def split(pairs: Sequence[Pair], seed: int) -> Splits:
    """Two fifths to learn from, two fifths for the gate, one for the test; pairs of one question together.

    Raises ValueError where there are too few questions.
    """
    questions = sorted({pair.question for pair in pairs})
    if len(questions) < 5:
        raise ValueError(
            f"at least 5 questions are needed to split them, there are {len(questions)}"
        )
    random.Random(seed).shuffle(questions)
    place = {question: index / len(questions) for index, question in enumerate(questions)}

    def between(low: float, high: float) -> tuple[Pair, ...]:
        return tuple(pair for pair in pairs if low <= place[pair.question] < high)

    return Splits(between(0, 0.4), between(0.4, 0.8), between(0.8, 1))


class Tuner:
    """Tunes principles over some rounds."""

    def __init__(
        self,
        detector: ChatModel,
        writer: ChatModel,
        splits: Splits,
        settings: JudgeSettings,
        *,
        confidence: float = 0.95,
        drawn: int = 4,
        seed: int = 0,
        hear: Callable[[Tried], None] = lambda tried: None,
    ) -> None:
        """writer: generates and reflects. drawn: questions, and labelled pairs, of a round. hear: each
        proposal as it was judged."""
        self.detector = detector
        self.writer = writer
        self.splits = splits
        self.settings = settings
        self.confidence = confidence
        self.drawn = drawn
        self.random = random.Random(seed)
        self.hear = hear
        # What the gate has found of the principles that it was asked for last.
        self._known: dict[Principles, list[bool]] = {}

    async def tune(self, principles: Principles, flaws: tuple[str, ...], rounds: int) -> Outcome:
        """Tune for so many rounds, two proposals each at most. Raises ModelFault."""
        first, tried = principles, list[Tried]()
        chance = (1 - self.confidence) / (2 * rounds)
        for number in range(1, rounds + 1):
            spoiled, learned = await asyncio.gather(
                self._spoiled(principles, flaws), self._labelled(principles)
            )
            fooled = [case for case in spoiled if case.said != case.right]
            caught = [case for case in spoiled if case.said == case.right]
            wrong = [case for case in learned if case.said != case.right]
            if caught:
                flaws = await self._new_flaws(flaws, caught)
            for cases in (fooled, wrong):
                if not cases:
                    continue
                one = await self._try(number, principles, cases, chance)
                self.hear(one)
                tried.append(one)
                if one.accepted:
                    principles = Principles(one.principles)
        before, after = await asyncio.gather(
            self.share(first, self.splits.test), self.share(principles, self.splits.test)
        )
        return Outcome(principles, flaws, before, after, tuple(tried))

    async def share(
        self, principles: Principles, pairs: Sequence[Pair]
    ) -> tuple[float, float, float]:
        """Share of the pairs judged right, with its 95 % interval."""
        right = sum(await self._right(principles, pairs))
        return right / len(pairs), *interval(right, len(pairs))

    async def _try(
        self, number: int, principles: Principles, cases: Sequence[Case], chance: float
    ) -> Tried:
        """Have a proposal made, and hold it to the gate's pairs."""
        try:
            proposed = await self._proposal(principles, cases)
        except (UnreadablePrinciples, ModelFault) as error:
            return Tried(number, (), False, fault=str(error))
        return await gate(number, principles, proposed, self.splits.gate, self._gated, chance)

    async def _gated(self, principles: Principles, pairs: Sequence[Pair]) -> list[bool]:
        """As `_right`, once for the principles that stay while proposals come and go."""
        if principles not in self._known:
            found = await self._right(principles, pairs)
            self._known = {**dict(list(self._known.items())[-3:]), principles: found}
        return self._known[principles]

    async def _right(self, principles: Principles, pairs: Sequence[Pair]) -> list[bool]:
        """For each pair: is the chosen answer found good, and the rejected one bad?"""

        async def one(pair: Pair) -> bool:
            said = await asyncio.gather(
                self._detect(principles, pair.question, pair.chosen),
                self._detect(principles, pair.question, pair.rejected),
            )
            return said == [GOOD, BAD]

        return list(await asyncio.gather(*map(one, pairs)))

    async def _detect(self, principles: Principles, question: str, answer: str) -> str:
        prompt = find_prompt("principles", self.settings.prompt)
        found = await detected(
            question, answer, principles, self.detector, self.settings, prompt, reasons=True
        )
        return str(found.found["verdict"])

    async def _spoiled(self, principles: Principles, flaws: Sequence[str]) -> list[Case]:
        """Answers that the generator has spoiled, and what the detector says of them."""

        async def one(pair: Pair) -> Case:
            values = {
                "question": marked("question", pair.question, self.settings.max_characters),
                "answer": marked("answer", pair.chosen, self.settings.max_characters),
                "flaw": self.random.choice(flaws),
            }
            schema = record(False, how=STRING, answer=STRING)
            found = (await self._ask_writer("generator", values, schema)).found
            answer = str(found["answer"])
            said = await self._detect(principles, pair.question, answer)
            return Case(pair.question, answer, said, BAD, str(found["how"]))

        return list(await asyncio.gather(*map(one, self._draw())))

    async def _labelled(self, principles: Principles) -> list[Case]:
        """Labelled answers, and what the detector says of them."""

        async def one(question: str, answer: str, right: str) -> Case:
            return Case(question, answer, await self._detect(principles, question, answer), right)

        acts: list[Awaitable[Case]] = []
        for pair in self._draw():
            acts += [one(pair.question, pair.chosen, GOOD), one(pair.question, pair.rejected, BAD)]
        return list(await asyncio.gather(*acts))

    async def _proposal(self, principles: Principles, cases: Sequence[Case]) -> Principles:
        values = {"principles": principles.listed, "cases": self._told(cases)}
        found = await self._ask_writer("reflector", values, record(True, principles=RULES))
        return made(found.found["principles"], "the reflector's proposal")

    async def _new_flaws(self, flaws: Sequence[str], caught: Sequence[Case]) -> tuple[str, ...]:
        values = {"flaws": Principles(tuple(flaws)).listed, "cases": self._told(caught)}
        try:
            found = await self._ask_writer("opponent", values, record(True, flaws=RULES))
            return made(found.found["flaws"], "the opponent's flaws").texts
        except (UnreadablePrinciples, ModelFault):
            return tuple(flaws)

    async def _ask_writer(self, name: str, values: dict[str, str], schema: JsonObject) -> Verdict:
        return await verdict(self.writer, find_prompt(name), values, schema, self.settings)

    def _told(self, cases: Sequence[Case]) -> str:
        most = max(200, self.settings.max_characters // max(1, len(cases)))
        return "\n\n".join(
            f"Question: {case.question[:most]}\n{marked('text', case.answer, most)}\n"
            f"Judged {case.said}, and it is {case.right}."
            f"{f' It was spoiled so: {case.why}' if case.why else ''}"
            for case in cases
        )

    def _draw(self) -> list[Pair]:
        return self.random.sample(self.splits.train, min(self.drawn, len(self.splits.train)))


async def gate(
    number: int,
    old: Principles,
    new: Principles,
    pairs: Sequence[Pair],
    right: Callable[[Principles, Sequence[Pair]], Awaitable[list[bool]]],
    chance: float,
) -> Tried:
    """Hold a proposal to labelled pairs. right: for each pair, whether it is judged right by some principles.

    chance: a proposal that is no better is accepted with this probability at most. Raises ModelFault.
    """
    if new == old:
        return Tried(number, new.texts, False, fault="it changes nothing")
    had, has = await asyncio.gather(right(old, pairs), right(new, pairs))
    better = sum(b and not a for a, b in zip(had, has, strict=True))
    worse = sum(a and not b for a, b in zip(had, has, strict=True))
    luck = wins(better, worse)
    return Tried(number, new.texts, luck <= chance, better, worse, luck)
