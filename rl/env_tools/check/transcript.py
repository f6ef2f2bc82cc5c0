"""Records what a check saw of some episodes, as plain JSON, and finds where two such records part."""

from dataclasses import dataclass
from typing import Any

from envs.message import JsonObject

_SHOWN = 120


@dataclass(frozen=True)
class Episode:
    """One task played to its end: `said` holds the messages after the opening, both sides'."""

    opening: list[JsonObject]
    said: list[JsonObject]
    rewards: dict[str, float]

    def as_json(self) -> JsonObject:
        return {"opening": self.opening, "said": self.said, "rewards": self.rewards}


@dataclass(frozen=True)
class Parting:
    """Where two transcripts part, e.g. `Parting("score()", "{'solved': 1.0}", "{'solved': 0.0}")`."""

    where: str
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.where} gave {self.one}, and then {self.other}"


def parting(one: JsonObject, other: JsonObject) -> Parting | None:
    """The first difference of two transcripts (`{"tasks": {split: ids}, "episodes": {key: episode}}`)."""
    for split, ids in one["tasks"].items():
        if ids != other["tasks"][split]:
            first, second = _first(ids, other["tasks"][split])
            return Parting(f"tasks({split!r}, seed=0)", f"task {first}", f"task {second}")
    for key, episode in one["episodes"].items():
        found = _of_episodes(episode, other["episodes"][key])
        if found is not None:
            return found
    return None


def _of_episodes(one: JsonObject, other: JsonObject) -> Parting | None:
    for part, where in (("opening", "reset()"), ("said", "the episode")):
        if one[part] != other[part]:
            first, second = _first(one[part], other[part])
            return Parting(_speaker(where, first), _shown(first), _shown(second))
    if one["rewards"] != other["rewards"]:
        return Parting("score()", str(one["rewards"]), str(other["rewards"]))
    return None


def _first(one: list[Any], other: list[Any]) -> tuple[Any, Any]:
    """The first pair that differs; None for what one of them does not have."""
    size = max(len(one), len(other))
    padded = ([*side, *[None] * (size - len(side))] for side in (one, other))
    return next(pair for pair in zip(*padded, strict=True) if pair[0] != pair[1])


def _speaker(where: str, message: Any) -> str:
    if isinstance(message, dict) and message["role"] == "tool":
        return f"tool {message.get('name')!r}"
    if isinstance(message, dict) and message["role"] == "assistant":
        return "the expert"
    return where


def _shown(message: Any) -> str:
    if not isinstance(message, dict):
        return "nothing"
    text = repr(message["content"] or message.get("tool_calls", ""))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
