"""The settings of runs as plain data: every key, its value, where it came from, and how another run differs.

In: config.toml and origins.json of the run folder. A key that no file and no flag gave is a default.
"""

from rl.config_file import flat
from rl.dashboard.run_data import RunData

_MOST_ROWS = 2000
_ABSENT = "-"


def setting_rows(
    run: RunData, others: list[RunData], *, match: str = "", differing: bool = False
) -> list[dict[str, object]]:
    """A row per key; `other0`, … hold the values of the others. match: what the key has to contain.

    differing: only keys whose values are not the same in all.
    """
    settings = [flat(one.config) for one in (run, *others)]
    rows = []
    for key in dict.fromkeys(key for one in settings for key in one):
        if match.lower() not in key.lower():
            continue
        values = [shown(one[key]) if key in one else _ABSENT for one in settings]
        differs = len(set(values)) > 1
        if differing and not differs:
            continue
        rows.append(
            {
                "key": key,
                "value": values[0],
                "origin": origin(run, key) if key in settings[0] else "",
                "differs": differs,
                **{f"other{index}": value for index, value in enumerate(values[1:])},
            }
        )
    return rows[:_MOST_ROWS]


def origin(run: RunData, key: str) -> str:
    """Where a key's value came from."""
    if not run.origins:
        return "not recorded"
    return run.origins.get(key, "default")


def shown(value: object) -> str:
    """A value as a reader knows it from TOML, at most some lines of it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value[:500]}"'
    if isinstance(value, list):
        return f"[{', '.join(shown(one) for one in value[:50])}]"
    return str(value)[:500]
