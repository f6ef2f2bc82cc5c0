"""Entry points of plugins: which package registers a name; refused where two register different things."""

from importlib.metadata import EntryPoint, entry_points


class TwoRegister(ValueError):
    """Two packages register one name; the message names both."""


def registered(group: str) -> list[str]:
    """The names that installed packages register in a group, such as `dorado.envs`."""
    return sorted({point.name for point in entry_points(group=group)})


def entry_point(group: str, name: str) -> EntryPoint | None:
    """The entry point of this name; None where there is none. Raises TwoRegister."""
    found = list(entry_points(group=group, name=name))
    if len({point.value for point in found}) > 1:
        named = ", ".join(f"{package_of(point)} ({point.value})" for point in found)
        raise TwoRegister(
            f"{name!r} is registered by two packages: {named}; uninstall one of them, or give module:Name"
        )
    return found[0] if found else None


def package_of(point: EntryPoint) -> str:
    """The name of the package that registers it; "" where its metadata do not say."""
    return point.dist.name if point.dist is not None else ""
