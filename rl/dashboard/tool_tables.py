"""Tables of an environment's tools and faults: calls, errors, seconds, texts with counts, an example each.

In: the text index of a run, as far as it is read, and the run's own index. Out: rows as text.
"""

from collections import Counter
from dataclasses import dataclass

from rl.dashboard.record_text import kind_of_error
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_index import fault_counts

_MOST_ROWS = 60
Row = dict[str, str]


@dataclass(frozen=True)
class ToolTables:
    """Rows of the tables; progress: how much of the run they are from."""

    tools: list[Row]
    errors: list[Row]
    faults: list[Row]
    progress: str


def used_tools(run: RunData) -> ToolTables:
    """The tables as of what is read. Raises sqlite3.Error where an index cannot be read now."""
    tools = [
        {
            "id": f"{one.env}\n{one.tool}",
            "env": one.env,
            "tool": one.tool,
            "calls": f"{one.calls:,}",
            "errors": f"{one.errors:,}",
            "share": f"{one.errors / one.calls:.1%}",
            "mean": "" if one.seconds is None else f"{one.seconds:.3g}",
            "longest": "" if one.seconds is None else f"{one.longest:.3g}",
            "example": one.example,
            "arguments": one.arguments[:160],
        }
        for one in run.texts.tools()[:_MOST_ROWS]
    ]
    errors = [
        {
            "id": f"{one.env}\n{one.tool}\n{one.error}",
            "env": one.env,
            "tool": one.tool,
            "error": one.error,
            "times": f"{one.times:,}",
            "example": one.example,
        }
        for one in run.texts.errors()[:_MOST_ROWS]
    ]
    whole = ask(run.folder, "select max(rowid) from trajectories")
    count = (whole[0][0] or 0) if whole else 0
    there = run.texts.read()
    progress = f"of the first {there:,} of {count:,} trajectories" if there < count else ""
    return ToolTables(tools, errors, fault_rows(run), progress)


def fault_rows(run: RunData) -> list[Row]:
    """Faults that say the same but for their numbers, as one row, the most frequent first."""
    times: Counter[tuple[str, str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for env, stop, fault, count, newest in fault_counts(run.folder):
        kind = env, stop, kind_of_error(fault)
        times[kind] += count
        example.setdefault(kind, newest)
    return [
        {
            "id": "\n".join(kind),
            "env": kind[0],
            "stop": kind[1],
            "fault": kind[2],
            "times": f"{count:,}",
            "example": example[kind],
        }
        for kind, count in times.most_common(_MOST_ROWS)
    ]
