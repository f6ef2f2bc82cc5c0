"""Asks a reward model for its score of the whole conversation, which is the reward as it is.

The model is one of `[[models]]` with `use = "reward"`. It is shown what was asked, answered, called and seen,
and no thought. Only differences of its scores mean something: an advantage that is relative to the group
takes them as they are.
"""

import json

from envs.chat_model import ChatAnswer, ChatModel, ChatRequest, ModelFault
from envs.env import Task
from envs.message import JsonObject
from reward.judges.shown import conversation
from rollout.trajectory import Judgement, Trajectory

SCORE: JsonObject = {
    "type": "object",
    "properties": {"score": {"type": "number"}},
    "required": ["score"],
}


def score_of(answer: ChatAnswer, model: ChatModel) -> float:
    """The score that an answer to a request with the schema `SCORE` holds. Raises ModelFault."""
    try:
        return float(json.loads(answer.text)["score"])
    except (ValueError, KeyError, TypeError):
        said = f"model {model.name!r}: no score: {answer.text[:100]!r}"
        raise ModelFault(said) from None


async def reward_model(task: Task, trajectory: Trajectory, model: ChatModel) -> Judgement:
    """Judge the conversation. Raises ModelFault."""
    request = ChatRequest(conversation(trajectory), max_tokens=1, schema=SCORE)
    answer = await model.ask(request)
    return Judgement(
        {"reward_model": score_of(answer, model)},
        models=(answer.model or model.name,),
        asked=1,
        cached=int(answer.cached),
    )
