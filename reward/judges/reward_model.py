"""Asks a reward model for its score of the whole conversation, which is the reward as it is.

The model is one of `[[models]]` with `use = "reward"`. It is shown what was asked, answered, called and seen,
and no thought. Only differences of its scores mean something: an advantage that is relative to the group
takes them as they are. Of a model with several heads the score is their sum under the model's own weights, or
under `weights`; the number of each head is a metric.
"""

import json
import math

from pydantic import model_validator

from envs.chat_model import ChatAnswer, ChatModel, ChatRequest, ModelFault
from envs.env import Task
from envs.message import JsonObject
from reward.judges.shown import conversation
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

SCORE: JsonObject = {
    "type": "object",
    "properties": {"score": {"type": "number"}, "heads": {"type": "object"}},
    "required": ["score"],
}


class RewardModelSettings(JudgeSettings):
    """weights: of the model's heads, in the place of its own; a head that is not named has weight 0."""

    weights: dict[str, float] = {}

    @model_validator(mode="after")
    def _alone(self) -> "RewardModelSettings":
        if others := sorted(self.model_fields_set - {"weights"}):
            raise ValueError(f"a reward model has no {others[0]}: leave it out")
        if not all(map(math.isfinite, self.weights.values())):
            raise ValueError("weights: they have to be finite numbers")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: every head has weight 0: give one a weight")
        return self


def score_of(answer: ChatAnswer, model: ChatModel) -> float:
    """The score that an answer to a request with the schema `SCORE` holds. Raises ModelFault."""
    return _numbers(answer, model)[0]


def _numbers(answer: ChatAnswer, model: ChatModel) -> tuple[float, dict[str, float]]:
    """The score, and the number of each head of several. Raises ModelFault."""
    try:
        found = json.loads(answer.text)
        heads = {name: float(one) for name, one in found.get("heads", {}).items()}
        return float(found["score"]), heads
    except (ValueError, KeyError, TypeError, AttributeError):
        said = f"model {model.name!r}: no score: {answer.text[:100]!r}"
        raise ModelFault(said) from None


@model_judge(RewardModelSettings)
async def reward_model(
    task: Task, trajectory: Trajectory, model: ChatModel, settings: RewardModelSettings
) -> Judgement:
    """Judge the conversation. Raises ModelFault."""
    request = ChatRequest(conversation(trajectory), max_tokens=1, schema=SCORE)
    answer = await model.ask(request)
    score, heads = _numbers(answer, model)
    if settings.weights:
        if unknown := sorted(settings.weights.keys() - heads.keys()):
            raise ModelFault(
                f"model {model.name!r} has no head {unknown[0]!r} (weights); it has "
                f"{', '.join(heads) or 'one'}"
            )
        score = math.fsum(weight * heads[name] for name, weight in settings.weights.items())
    return Judgement(
        {"reward_model": score},
        metrics=heads,
        models=(answer.model or model.name,),
        asked=1,
        cached=int(answer.cached),
    )
