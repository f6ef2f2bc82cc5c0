"""verifiers' half in its own interpreter, for environments of its older kind (`load_environment`, up to 0.3).

Such an environment plays the model by a client, in this process; tools, turns and rubric are its.
"""

import functools
import importlib
import importlib.metadata
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Functions = dict[str, Callable[..., Any]]
# Columns of a row that an episode begins with.
_KEPT = ("prompt", "example_id", "answer", "info", "task")


def load() -> tuple[Functions, dict[str, str]]:
    """The functions `check`, `tasks`, `begin`, `ended`, `drop`, and the package's version."""
    verifiers: Any = importlib.import_module("verifiers")
    clients: Any = importlib.import_module("verifiers.clients")

    @functools.lru_cache(64)
    def made(settings: str) -> Any:
        return _made(verifiers, json.loads(settings))

    async def play(settings: str, data: Json, url: str, variable: str, model: str) -> Json:
        environment = made(settings)
        asked = _client(url, variable)
        async with asked:
            client = clients.OpenAIChatCompletionsClient(asked)
            state = await environment._run_rollout_state(dict(data), client, model, {})
        return _outcome(state)

    def check(settings: str) -> None:
        """Raise ValueError with one sentence where an environment cannot be made, or has no task."""
        if not len(_rows(made(settings), False)):
            raise ValueError("the environment has no task")

    def tasks(settings: str, heldout: bool, start: int, count: int) -> Json:
        """So many tasks from this one on, as plain data; fewer where there are no more."""
        rows = _rows(made(settings), heldout)
        end = min(start + count, len(rows))
        part: list[Json] = rows.select(range(start, end)).to_list() if start < end else []
        kept = [{key: row[key] for key in _KEPT if row.get(key) is not None} for row in part]
        return {"tasks": kept, "endless": False}

    script = Path(__file__).with_name("concurrent_episodes.py")
    episodes = runpy.run_path(str(script))["Episodes"](play)

    def begin(settings: str, data: Json, url: str, key: str, model: str) -> int:
        """Begin an episode. The environment is made in this thread: it sets signals."""
        made(settings)
        return episodes.begin(settings, data, url, key, model)

    acts = {name: getattr(episodes, name) for name in ("ended", "drop")} | {"begin": begin}
    version = importlib.metadata.version("verifiers")
    return {"check": check, "tasks": tasks, **acts}, {"verifiers": version}


def _made(verifiers: Any, settings: Json) -> Any:
    """The environment, which plays no more turns than an episode has."""
    for path in settings["paths"]:
        if path not in sys.path:
            sys.path.insert(0, path)
    found = verifiers.load_environment(settings["env"]["id"], **settings["env"].get("args", {}))
    most = settings["limits"].get("max_turns")
    own = getattr(found, "max_turns", None)
    if most and own is not None:
        found.max_turns = min(own, most) if own > 0 else most
    return found


def _rows(environment: Any, heldout: bool) -> Any:
    """Its data set, or that of its evaluations. Raises ValueError where it has none of its own for them."""
    if not heldout:
        return environment.get_dataset()
    environment.build_eval_dataset()
    if environment.eval_dataset is None:
        raise ValueError("the environment has no eval_dataset: leave out eval_dataset here too")
    return environment.get_eval_dataset()


def _client(url: str, variable: str) -> Any:
    openai: Any = importlib.import_module("openai")
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=os.environ[variable], max_retries=0, timeout=None
    )


def _outcome(state: Any) -> Json:
    """Tell what came of an episode, as JSON. Its rubric gives one reward; what it is made of are metrics."""
    error = state.get("error")
    given: Json = state.get("metrics") or {}
    metrics = {
        name: float(value) for name, value in given.items() if isinstance(value, int | float)
    }
    # An opening or a history that is too long ends an episode as a limit does: it was scored.
    known = type(error).__name__ in ("NoneType", "OverlongPromptError")
    return {
        "ok": known and state.get("reward") is not None,
        "rewards": {"reward": float(state.get("reward") or 0.0)},
        "metrics": metrics,
        "stop": state.get("stop_condition") or "",
        "errors": [] if error is None else [f"{type(error).__name__}: {error}"],
        "infrastructure": type(error).__name__ in ("SandboxError", "TunnelError", "InfraError"),
    }
