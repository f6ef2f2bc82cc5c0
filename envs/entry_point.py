"""Entry points of plugins: which package registers a name; refused where two register different things."""

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points


class TwoRegister(ValueError):
    """Two packages register one name; the message names both."""


def registered(group: str) -> list[str]:
    """The names that installed packages register in a group, such as `dorado.envs`."""
    return sorted(_of_group(group, tuple(sys.path)).names)


def entry_point(group: str, name: str) -> EntryPoint | None:
    """The entry point of this name; None where there is none. Raises TwoRegister."""
    found = list(_of_group(group, tuple(sys.path)).select(name=name))
    if len({point.value for point in found}) > 1:
        named = ", ".join(f"{package_of(point)} ({point.value})" for point in found)
        raise TwoRegister(
            f"{name!r} is registered by two packages: {named}; uninstall one of them, or give module:Name"
        )
    return found[0] if found else None


def package_of(point: EntryPoint) -> str:
    """The name of the package that registers it; "" where its metadata do not say."""
    return point.dist.name if point.dist is not None else ""


@lru_cache(maxsize=8)
def _of_group(group: str, path: tuple[str, ...]) -> EntryPoints:
    """The entry points of a group on this `sys.path`: a look through the packages takes 20 ms."""
    return entry_points(group=group)
