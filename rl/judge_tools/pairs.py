"""Preference pairs by agents (arXiv 2508.21476): a writer, a critic and a reviser, and rejection sampling.

In: questions, and the models that play the agents. Out: rows for `dorado reward train`. The writer answers a
question several times; the critic notes merits and flaws of each answer and calls it good or bad; it looks
again, at a temperature, and an answer of which it says both is in no pair. The reviser mends a bad one by its
flaws, and the critic judges that as any other, without a word of where it is from. A pair is a good and a bad
answer of one question. A fault of a model is a fault of its question, which gives no rows. Left out: examples
that are looked up for the critic.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from envs.chat_model import ChatModel, ChatRequest, ModelFault
from envs.message import JsonObject, Message
from envs.prompt import marked
from reward.judges.prompt import find_prompt
from reward.judges.verdict import one_of, record, verdict
from reward.model_judge import JudgeSettings, Vote

GOOD, BAD = "good", "bad"
NOTE: JsonObject = {"type": "string", "maxLength": 600}
# The critic's further looks are drawn at this temperature.
AGAIN_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Agents:
    """The models that play them, and what they do for each question.

    answers: of the writer, at `temperature`. looks: of the critic at each answer, which have to agree. most:
    pairs of one question.
    """

    writer: ChatModel
    critic: ChatModel
    answers: int = 4
    looks: int = 2
    most: int = 4
    temperature: float = 1.0
    max_tokens: int = 512


@dataclass(frozen=True)
class Answer:
    """One answer. by: "writer" or "reviser". said: good, bad, or "" where looks part. flaws: of the first
    look."""

    text: str
    by: str
    said: str = ""
    flaws: str = ""


async def rows_of(
    questions: Sequence[str], agents: Agents, at_once: int, seed: int, counts: Counter[str]
) -> AsyncIterator[list[JsonObject]]:
    """Yield each question's rows, as they are done. counts: of answers by verdict, pairs, faults."""
    room = asyncio.Semaphore(at_once)

    async def one(number: int, question: str) -> list[JsonObject]:
        async with room:
            try:
                answers = await _answers(question, agents)
            except ModelFault as fault:
                counts["faults"] += 1
                counts[f"fault: {fault}"] += 1
                return []
        for answer in answers:
            counts[f"{answer.by}: {answer.said or 'unsure'}"] += 1
        found = _pairs(question, answers, agents.most, random.Random(seed * 1_000_003 + number))
        counts["pairs"] += len(found)
        return found

    tasks = [asyncio.create_task(one(*numbered)) for numbered in enumerate(questions)]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for task in tasks:
            task.cancel()


async def _answers(question: str, agents: Agents) -> list[Answer]:
    """The writer's answers, and the reviser's of bad ones, each judged. Raises ModelFault."""

    async def written(number: int) -> list[Answer]:
        answer = await agents.writer.ask(
            ChatRequest(
                (Message("user", question),),
                max_tokens=agents.max_tokens,
                temperature=agents.temperature,
                number=number,
            )
        )
        text = answer.text.strip()
        if answer.cut or not text:  # cut off half-way: its flaw would be that alone
            return []
        first = await _judged(question, Answer(text, "writer"), agents)
        if first.said != BAD:
            return [first]
        mended = await _revised(question, first, agents)
        return [first, await _judged(question, Answer(mended, "reviser"), agents)]

    found = await asyncio.gather(*map(written, range(agents.answers)))
    unique = {one.text: one for answers in found for one in answers}
    return list(unique.values())


async def _judged(question: str, answer: Answer, agents: Agents) -> Answer:
    """The answer with the critic's verdict, if all its looks agree. Raises ModelFault."""
    values = {"question": marked("question", question, 12_000)}
    values["answer"] = marked("answer", answer.text, 12_000)
    schema = record(False, merits=NOTE, flaws=NOTE, verdict=one_of(GOOD, BAD))
    found = await asyncio.gather(
        *(
            verdict(
                Vote(agents.critic, look),
                find_prompt("critic"),
                values,
                schema,
                JudgeSettings(temperature=AGAIN_TEMPERATURE if look else 0.0, max_tokens=1024),
            )
            for look in range(agents.looks)
        )
    )
    said = {str(one.found["verdict"]) for one in found}
    flaws = str(found[0].found["flaws"])
    return Answer(answer.text, answer.by, said.pop() if len(said) == 1 else "", flaws)


async def _revised(question: str, answer: Answer, agents: Agents) -> str:
    """The answer without its flaws, as the writer mends it. Raises ModelFault."""
    prompt = find_prompt("reviser")
    values = {
        "question": marked("question", question, 12_000),
        "answer": marked("answer", answer.text, 12_000),
        "flaws": marked("flaws", answer.flaws, 2_000),
    }
    settings = JudgeSettings(max_tokens=agents.max_tokens + 64)
    schema = record(False, answer={"type": "string"})
    found = await verdict(agents.writer, prompt, values, schema, settings)
    return str(found.found["answer"]).strip()


def _pairs(
    question: str, answers: Sequence[Answer], most: int, draw: random.Random
) -> list[JsonObject]:
    """Rows of a good and a bad answer each, at most so many, drawn."""
    good = [one for one in answers if one.said == GOOD and one.text]
    bad = [one for one in answers if one.said == BAD]
    every = list(itertools.product(good, bad))
    chosen = every if len(every) <= most else draw.sample(every, most)
    return [
        {
            "prompt": question,
            "chosen": a.text,
            "rejected": b.text,
            "chosen_by": a.by,
            "rejected_by": b.by,
            "flaws": b.flaws,
            "version": find_prompt("critic").version,
        }
        for a, b in chosen
    ]
