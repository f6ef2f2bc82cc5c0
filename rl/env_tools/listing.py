"""The list of `dorado env list`: the installed environments, those that cannot be imported included."""

from importlib.metadata import EntryPoint, entry_points

from envs.entry_point import package_of
from envs.registry import GROUP
from rl.plugin_check import summaries


def installed() -> list[dict[str, str]]:
    """List name, package and summary of each environment under the entry point `dorado.envs`."""
    points = sorted(set(entry_points(group=GROUP)), key=_name_and_package)
    said = summaries([point.name for point in points])
    return [
        {"name": point.name, "package": package_of(point), "summary": summary}
        for point, summary in zip(points, said, strict=True)
    ]


def _name_and_package(point: EntryPoint) -> tuple[str, str]:
    return point.name, package_of(point)
