"""Gymnasium's half in its own interpreter (`lines_server`): holds environments, speaks text.

An observation is the environment's own text, else its `ansi` picture, else JSON. Colours in a picture, which
may hold what matters (where the player stands), become tags: `<red>S</red>`.
"""

import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from typing import Any

_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_COLOURED = re.compile(r"\x1b\[([\d;]*)m(.*?)\x1b\[0?m", re.DOTALL)


def load() -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """The functions `describe`, `open`, `step` and `close`, and the package's version."""
    gymnasium: Any = importlib.import_module("gymnasium")
    worlds: dict[str, Any] = {}

    def make(id: str, kwargs: dict[str, Any]) -> Any:
        world = gymnasium.make(id, **kwargs)
        if "render_mode" in kwargs or "ansi" not in world.metadata.get("render_modes", ()):
            return world
        world.close()
        return gymnasium.make(id, **{**kwargs, "render_mode": "ansi"})

    def look(world: Any, observation: Any) -> str:
        if isinstance(observation, str):
            return observation
        if world.render_mode == "ansi":
            return plain_colours(world.render()).strip("\n")
        return json.dumps(observation, default=_plain)

    def describe(id: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        world = make(id, kwargs)
        schema = action_schema(world.action_space)
        world.close()
        return schema

    def open(session: str, id: str, kwargs: dict[str, Any], seed: int) -> dict[str, Any]:
        worlds[session] = world = make(id, kwargs)
        observation, _ = world.reset(seed=seed)
        return {"text": look(world, observation), "action": action_schema(world.action_space)}

    def step(session: str, action: Any) -> dict[str, Any]:
        if session not in worlds:
            return {"lost": True}
        world = worlds[session]
        try:
            action = as_action(world.action_space, action)
            fits = world.action_space.contains(action)
        except (
            TypeError,
            ValueError,
            OverflowError,
        ):  # lists of text, of unlike lengths, too large
            fits = False
        if not fits:
            return {"refused": f"the action has to be one of {world.action_space}"}
        observation, reward, terminated, truncated, _ = world.step(action)
        return {
            "text": look(world, observation),
            "reward": float(reward),
            "done": bool(terminated or truncated),
        }

    def close(session: str) -> None:
        if session in worlds:
            worlds.pop(session).close()

    methods = {"describe": describe, "open": open, "step": step, "close": close}
    return methods, {"gymnasium": importlib.metadata.version("gymnasium")}


def action_schema(space: Any) -> dict[str, Any]:
    """The JSON schema of an action. Raises ValueError for a space without one."""
    kind = type(space).__name__
    if kind == "Discrete":
        first = int(space.start)
        return {"type": "integer", "minimum": first, "maximum": first + int(space.n) - 1}
    if kind == "Text":
        return {"type": "string"}
    if kind in ("MultiDiscrete", "MultiBinary"):
        return {"type": "array", "items": {"type": "integer"}}
    if kind == "Box":
        return {"type": "array", "items": {"type": "number"}}
    raise ValueError(f"actions of {kind} cannot be written as one value")


def as_action(space: Any, action: Any) -> Any:
    """Read an action as an element of the space, which may still not contain it."""
    if not isinstance(action, list):
        return action
    return importlib.import_module("numpy").asarray(action, dtype=space.dtype)


def plain_colours(picture: str) -> str:
    """Terminal colours as tags; other codes are left out."""

    def tagged(match: "re.Match[str]") -> str:
        codes = [int(code) for code in match[1].split(";") if code]
        names = [_COLOURS[code % 10] for code in codes if code // 10 in (3, 4) and code % 10 < 8]
        return f"<{names[0]}>{match[2]}</{names[0]}>" if names else match[2]

    return re.sub(r"\x1b\[[\d;]*m", "", _COLOURED.sub(tagged, picture))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
