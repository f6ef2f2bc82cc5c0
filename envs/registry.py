"""Finds an environment class by entry point (`dorado.envs`) or as `module:Name`."""

import difflib
import importlib
from importlib.metadata import entry_points

from envs.env import Env


class UnknownEnv(ValueError):
    """No environment of that name; the message says which there are."""


def env_names() -> list[str]:
    """The names registered under the entry point group `dorado.envs`."""
    return sorted(point.name for point in entry_points(group="dorado.envs"))


def find_env(name: str) -> type[Env]:
    """The environment class called `name` (entry point) or at `module:Name`.

    Raises UnknownEnv with one sentence.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # a plugin can fail in any way
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnknownEnv(f"environment {name!r} cannot be imported: {reason}") from None
    else:
        matching = [p for p in entry_points(group="dorado.envs") if p.name == name]
        if not matching:
            close = difflib.get_close_matches(name, env_names(), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownEnv(
                f"environment {name!r} does not exist: {hint}"
                f"installed are {', '.join(env_names())}; or give module:Name"
            )
        found = matching[0].load()
    if not (isinstance(found, type) and issubclass(found, Env)):
        raise UnknownEnv(f"environment {name!r} is not a subclass of envs.env.Env")
    return found
