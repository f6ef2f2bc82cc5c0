"""`dorado report RUN`: a run as one HTML file that needs neither a network nor a server, and has no script.

In: a run folder. Out: one text with its figures, alerts, charts, environments, examples of what the policy
does, and settings. All text of the run is escaped.
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

from rl.dashboard.alerts import alerts
from rl.dashboard.changes import said_changes
from rl.dashboard.comparison import flat
from rl.dashboard.environments import KINDS, ledger_rows
from rl.dashboard.learning import STABILITY, evaluation_lines, reward_lines, stability_lines
from rl.dashboard.metric_guide import about_key, by_section
from rl.dashboard.overview import command, commit, figures, held_out_rows
from rl.dashboard.run_data import RunData
from rl.dashboard.series import matching
from rl.dashboard.svg_lines import Lines, svg
from rl.dashboard.tool_tables import used_tools
from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import Hit, hits
from rl.dashboard.trajectory_record import TrajectoryView, Unreadable, read_record

# Metrics that have a chart of their own, of each section; all of them are in the run folder.
_KEYS = r"/all/|^loss/|^optim/|^parity/|^time/|^staleness/|^router/|pass_rate$|^rollout/.*/reward$"
_MOST_KEYS = 24
_MOST_EXAMPLES = 6
_MOST_TEXT, _MAX_TURNS = 3000, 20
_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 22px; } h2 { font-size: 17px; margin: 28px 0 6px; } h3 { font-size: 13px; margin: 0; }
.quiet { color: #636a75; } .tiles, .charts { display: grid; gap: 12px; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(min(160px, 100%), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); }
.two { grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); }
.tiles div, figure { border: 1px solid #80879250; border-radius: 8px; padding: 8px 10px; margin: 0; }
.tiles b { display: block; font-size: 18px; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: #6f7782; } .rule { stroke: #80879240; } .mark { stroke: #D55E00;
stroke-dasharray: 4 3; } .legend { margin: 0; font-size: 12px; } .legend span { margin-right: 12px; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 4px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; } .wide { overflow-x: auto; }
td, th { text-align: left; padding: 3px 8px; border-bottom: 1px solid #80879240; vertical-align: top;
overflow-wrap: anywhere; } pre, code { font: 12px/1.45 ui-monospace, monospace; white-space: pre-wrap;
overflow-wrap: anywhere; margin: 0; } .error, .warning { font-weight: 600; } summary { cursor: pointer; }
.message { border-left: 3px solid #80879260; padding-left: 10px; margin: 8px 0; }
@media (prefers-color-scheme: dark) { .quiet { color: #9aa1ac; } svg text { fill: #9aa1ac; } }
"""


def report(run: RunData, now: float | None = None) -> str:
    """The report of a run that was read, its text index grown. Raises nothing for what the run holds."""
    now = time.time() if now is None else now
    name = escape(run.name)
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; ',
        "style-src 'unsafe-inline'\">",
        f"<title>{name} · Dorado</title><style>{_STYLE}</style><body class='page'><h1>{name}</h1>",
        *_head(run, now),
        *_learning(run),
        *_environments(run),
        *_examples(run),
        *_metrics(run),
        *_settings(run),
        f'<p class="quiet">Made by <code>dorado report</code> at {time.strftime("%F %T", time.gmtime(now))} '
        "UTC.</p></html>\n",
    ]
    return "".join(parts)


def _head(run: RunData, now: float) -> Iterator[str]:
    yield '<div class="tiles">'
    for one in figures(run, now):
        yield f'<div><span class="quiet">{escape(one.name)}</span><b>{escape(one.value)}</b>'
        yield f'<span class="quiet">{escape(one.remark)}</span></div>'
    yield "</div>"
    if line := command(run):
        yield f"<p><code>{escape(line)}</code></p>"
    if code := commit(run):
        yield f'<p class="quiet">commit {escape(code)}</p>'
    found = alerts(run, now)
    if found:
        yield "<h2>Alerts</h2><ul>"
        for alert in found:
            step = "" if alert.step is None else f"step {alert.step}: "
            yield f'<li><span class="{alert.level}">{alert.level}</span>: {step}{escape(alert.text)}</li>'
        yield "</ul>"


def _learning(run: RunData) -> Iterator[str]:
    yield '<h2>Is it learning?</h2><div class="charts two">'
    yield svg(evaluation_lines(run))
    yield svg(reward_lines(run))
    yield "</div>"
    if changes := sorted(said_changes(run.changes), key=lambda change: change.step):
        yield "<ul>" + "".join(f"<li>{escape(one.sentence)}</li>" for one in changes) + "</ul>"
    columns = ("env", "before", "after", "best", "gain")
    yield _table(columns, held_out_rows(run))
    yield '<h2>Is it stable?</h2><div class="charts">'
    for name, one in stability_lines(run).items():
        yield svg(replace(one, title=f"{one.title} ({STABILITY[name].remark})"))
    yield "</div>"


def _environments(run: RunData) -> Iterator[str]:
    yield "<h2>Environments</h2>"
    yield _table(("env", "dispatched", *KINDS, "share", "reasons"), ledger_rows(run))
    try:
        found = used_tools(run)
    except (sqlite3.Error, OSError) as error:
        yield f'<p class="quiet">The index cannot be read: {escape(str(error))}</p>'
        return
    columns = ("env", "tool", "calls", "errors", "share", "mean", "longest", "example", "arguments")
    yield "<h3>Tools (seconds of a call)</h3>" + _table(columns, found.tools)
    if found.errors:
        yield "<h3>Errors that tools answered with (# for numbers)</h3>"
        yield _table(("env", "tool", "error", "times", "example"), found.errors)
    if found.faults:
        yield "<h3>Faults that are not the policy's (# for numbers)</h3>"
        yield _table(("env", "stop", "fault", "times", "example"), found.faults)


def _examples(run: RunData) -> Iterator[str]:
    """The newest trajectories of the lowest and of the highest reward, with their messages."""
    for title, order in (("lowest", "-reward"), ("highest", "reward")):
        try:
            found = hits(run.folder, TrajectoryFilter(order=order, fault="without"))[
                :_MOST_EXAMPLES
            ]
        except (sqlite3.Error, OSError):
            return
        if found:
            yield f"<h2>Trajectories of the {title} reward</h2>"
        for hit in found:
            yield from _example(run, hit)


def _example(run: RunData, hit: Hit) -> Iterator[str]:
    try:
        view = read_record(run.folder, hit)
    except Unreadable:
        return
    reward = "no reward" if hit.reward is None else f"reward {hit.reward:.3g}"
    said = f"{hit.id}: {reward}, {hit.env}, {hit.split}, version {hit.versions}, {hit.stop_reason}"
    yield f"<details><summary>{escape(said)}</summary>"
    for who, text in _messages(view):
        yield f'<div class="message"><span class="quiet">{escape(who[:100])}</span>'
        yield f"<pre>{escape(text[:_MOST_TEXT])}</pre></div>"
    yield "</details>"


def _messages(view: TrajectoryView) -> Iterator[tuple[str, str]]:
    for one in view.opening:
        yield f"{one.role} {one.name}".strip(), one.text
    for turn in view.turns[:_MAX_TURNS]:
        calls = [
            f"{call.name}({', '.join(f'{name}={value}' for name, value in call.arguments)})"
            for call in turn.calls
        ]
        yield (
            f"policy, turn {turn.number}",
            "\n".join(t for t in (turn.thought, turn.text, *calls) if t),
        )
        for one in turn.observations:
            yield f"{one.role} {one.name}".strip(), one.text
    if view.fault:
        yield "fault", view.fault


def _metrics(run: RunData) -> Iterator[str]:
    keys = matching(run.series, _KEYS)
    for section, own in by_section(keys).items():
        yield f"<details><summary>{section.title} · {len(own)}: {section.about}</summary>"
        yield '<div class="charts">'
        for key in own[:_MOST_KEYS]:
            about = about_key(key)
            title = f"{key}: {about}" if about else key
            yield svg(Lines(title, [(key, run.series[key])]))
        yield "</div></details>"


def _settings(run: RunData) -> Iterator[str]:
    rows = [{"key": key[:200], "value": value[:500]} for key, value in flat(run.config)]
    yield f"<h2>Settings</h2><details><summary>{len(rows)} settings</summary>"
    yield _table(("key", "value"), rows)
    yield "</details>"


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return '<p class="quiet">nothing</p>'
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
