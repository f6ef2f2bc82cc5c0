"""Metrics as a table for other programs: CSV, a line for each value."""

import csv
import io
from collections.abc import Sequence

from rl.dashboard.run_data import RunData

COLUMNS = ("run", "key", "step", "time", "value")


def as_csv(runs: Sequence[RunData], keys: Sequence[str]) -> str:
    """Every value of these keys, not smoothed and none left out; time in unix seconds."""
    out = io.StringIO()
    lines = csv.writer(out)
    lines.writerow(COLUMNS)
    for run in runs:
        for key in keys:
            if (one := run.series.get(key)) is not None:
                both = _text(run.name), _text(key)
                for values in zip(one.steps, one.times, one.values, strict=True):
                    lines.writerow((*both, *values))
    return out.getvalue()


def _text(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
