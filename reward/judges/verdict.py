"""One question of a judge to its model: a prompt with its places filled in, a JSON object by schema back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.chat_model import ChatModel, ChatRequest, ModelFault
from envs.message import JsonObject, Message
from envs.prompt import Prompt
from reward.model_judge import JudgeSettings


@dataclass(frozen=True)
class Verdict:
    """A model's answer. found: the JSON object. cached: an equal question was paid for before."""

    found: dict[str, Any]
    model: str
    cached: bool


async def verdict(
    model: ChatModel,
    prompt: Prompt,
    values: Mapping[str, str],
    schema: JsonObject,
    settings: JudgeSettings,
) -> Verdict:
    """Ask, and read the answer. Raises ModelFault."""
    request = ChatRequest(
        (Message("user", prompt.filled(values)),),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        schema=schema,
    )
    answer = await model.ask(request)
    try:
        found = json.loads(answer.text)
    except ValueError:
        found = None
    if not isinstance(found, dict):  # the pool lets none through; a model of a test may
        raise ModelFault(f"model {model.name!r}: no JSON object: {answer.text[:100]!r}")
    return Verdict(found, answer.model or model.name, answer.cached)


def one_of(*words: str) -> JsonObject:
    """Schema of a choice."""
    return {"type": "string", "enum": list(words)}


def record(reasons: bool, /, **fields: JsonObject) -> JsonObject:
    """Schema of an object with all these fields; with a reason, which comes first."""
    properties = ({"reason": {"type": "string", "maxLength": 600}} if reasons else {}) | fields
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
