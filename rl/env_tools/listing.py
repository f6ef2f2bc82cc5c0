"""The list of `dorado env list`: the installed environments, those that cannot be imported included."""

import inspect
from importlib.metadata import entry_points

from envs.registry import UnknownEnv, find_env


def installed() -> list[dict[str, str]]:
    """List name, package and summary of each environment under the entry point `dorado.envs`."""
    found: list[dict[str, str]] = []
    for point in sorted(entry_points(group="dorado.envs"), key=lambda p: p.name):
        try:
            summary = (inspect.getdoc(find_env(point.name)) or "").split("\n", 1)[0]
        except UnknownEnv as error:
            summary = f"cannot be used: {error}"
        package = point.dist.name if point.dist is not None else ""
        found.append({"name": point.name, "package": package, "summary": summary})
    return found
