"""status.json in the run folder: what the run is doing now, and how it has ended.

The run writes it, a last time with its outcome when it ends; `dorado status` reads it.
"""

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rl.config_file import ConfigError
from rl.record.evaluations import EvaluationRow, best_of
from rl.record.model_state import ModelState
from rl.record.summary import Summary, read_summary
from rl.record.waiting import Latency, Waiting

# How often the run writes it, and after how long without it the run's own loop is suspected.
WRITE_SECONDS = 5.0
SILENT_SECONDS = 30.0
# Rows of the waiting-for table that are written; the counts cover all. A terminal shows the first of them.
ROWS = 100
SHOWN_ROWS = 10
# Evaluations that a terminal shows, and columns of environments.
SHOWN_EVALUATIONS, MOST_ENVS = 5, 6

# How a run has ended; "" while it has not.
Outcome = Literal["", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class ActorState:
    """One actor as status.json has it. seen: when it last answered (unix seconds), None: never yet.

    asked: since when an answer is awaited; None where none is. fault: why the last question failed.
    """

    name: str
    pid: int | None
    node: str
    seen: float | None
    asked: float | None
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a run at one moment.

    time: unix seconds. learner: what it does or waits for. window: live versions, oldest first; pending:
    published, without a place in it. engines: the version each holds (None: it changes). asleep: engines
    that do, while the learner uses their devices. in_flight, buffered: trajectories. counts: those in
    flight per environment and phase. waiting: the most suspicious ones, `ROWS` at most. silent:
    controllers that did not answer; what they play is in no row. ledger: per environment, as
    `rl.samples.ledger.Ledger.counts` has it. latency: per environment and phase. actors: who answered when.
    lost: a sentence for each node and engine that is gone, and for what was started anew elsewhere. nodes:
    the names of the actors on each, by address. models: the frozen ones beside the
    policy. outcome: how the run has ended; said: its last sentence.
    """

    time: float
    stage: str
    step: int
    steps: int
    learner: str
    window: tuple[int, ...] = ()
    pending: int | None
    engines: dict[str, int | None]
    asleep: tuple[str, ...] = ()
    in_flight: int
    buffered: int
    counts: dict[str, dict[str, int]]
    waiting: tuple[Waiting, ...]
    silent: tuple[str, ...] = ()
    ledger: dict[str, dict[str, int]] = field(default_factory=dict)
    latency: dict[str, dict[str, Latency]] = field(default_factory=dict)
    actors: tuple[ActorState, ...] = ()
    lost: tuple[str, ...] = ()
    nodes: dict[str, list[str]] = field(default_factory=dict)
    models: tuple[ModelState, ...] = ()
    outcome: Outcome = ""
    said: str = ""

    def as_json(self) -> dict[str, object]:
        """For status.json."""
        return asdict(self)


STATUS = TypeAdapter(Status)


def read_status(folder: Path) -> Status:
    """Read what the run wrote last. Raises ConfigError."""
    try:
        return STATUS.validate_python(json.loads((folder / "status.json").read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"status {folder}: the run has not begun to play yet"
            if (folder / "config.toml").exists()
            else f"status {folder}: this is no run folder; one is wanted, such as runs/quickstart"
        ) from None
    except ValidationError as error:
        raise ConfigError(
            f"status {folder}: status.json cannot be read: {first_fault(error)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"status {folder}: status.json cannot be read: {error}") from None


def write_end(folder: Path, outcome: Outcome, said: str) -> None:
    """Write status.json a last time: how the run has ended, and nothing in flight any more.

    Actors that owed an answer owe none. A disk that is full keeps what the run wrote last.
    """
    try:
        last = read_status(folder)
    except ConfigError:
        nothing: dict[str, int | None] = {}
        last = Status(
            time=0.0,
            stage="",
            step=0,
            steps=0,
            learner="has not begun",
            pending=None,
            engines=nothing,
            in_flight=0,
            buffered=0,
            counts={},
            waiting=(),
        )
    summary = read_summary(folder)
    end = replace(
        last,
        time=time.time(),
        step=last.step if summary.steps is None else summary.steps,
        learner="",
        pending=None,
        asleep=(),
        in_flight=0,
        buffered=0,
        counts={},
        waiting=(),
        silent=(),
        ledger=last.ledger if summary.ledger is None else summary.ledger,
        actors=tuple(replace(one, asked=None, fault="") for one in last.actors),
        outcome=outcome,
        said=said,
    )
    partial = folder / "status.json.partial"
    with suppress(OSError):
        partial.write_text(json.dumps(end.as_json()) + "\n", encoding="utf-8")
        partial.rename(folder / "status.json")


def first_fault(error: ValidationError) -> str:
    """The first of what is wrong with a record, such as "waiting: Field required"."""
    first = error.errors(include_url=False)[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


def in_progress(folder: Path) -> bool:
    """Return True if some process holds the run folder."""
    lock = folder.resolve().parent / f".{folder.resolve().name}.lock"
    try:
        with lock.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def describe(
    status: Status,
    *,
    live: bool,
    summary: Summary | None = None,
    evaluations: Sequence[EvaluationRow] = (),
    now: float | None = None,
) -> Group:
    """For a terminal: the verdict, then the state in a few lines, then results or the waiting-for table."""
    silent = (time.time() if now is None else now) - status.time
    lines = [verdict(status, live=live, silent=silent)]
    if status.said:
        lines.append(status.said)
    if live or not status.outcome:
        lines += _moment(status)
    lines += [f"noticed   {sentence}" for sentence in status.lost]
    shown: list[RenderableType] = [*map(Text, lines)]
    if evaluations:
        shown.append(evaluations_table(evaluations))
    elif summary is not None and not live and (rates := summary.rates()):
        shown.append(rates_table(rates))
    if status.waiting:
        shown.append(waiting_table(status.waiting[:SHOWN_ROWS]))
    if (more := len(status.waiting) - SHOWN_ROWS) > 0:
        shown.append(Text(f"and {more} more (--json has all)"))
    return Group(*shown)


def verdict(status: Status, *, live: bool, silent: float) -> str:
    """The first line: running, or how the run has ended. silent: seconds since the status was written."""
    done = f"step {status.step} of {status.steps}" if status.steps else "before its first step"
    if live:
        if silent > SILENT_SECONDS:
            return f"the run's own loop does not answer: it wrote this {_ago(silent)} ago; {done}"
        return f"running: {status.stage}, {done}"
    if status.outcome:
        return f"{status.outcome} {_ago(silent)} ago, {done}"
    return (
        f"not running any more, and ended without a word (killed?) at {done} in {status.stage}; "
        f"this is how it stood {_ago(silent)} ago"
    )


def _moment(status: Status) -> list[str]:
    """The state at the moment of the status, for a run that had not ended by then."""
    window = " ".join(map(str, status.window))
    held = f"; version {status.pending} waits for a place" if status.pending is not None else ""
    served = "  ".join(
        f"{name}: {_version(v)}{' (asleep)' * (name in status.asleep)}"
        for name, v in sorted(status.engines.items())
    )
    lines = [
        f"learner   {status.learner}",
        f"window    {window}{held}",
        f"engines   {served}",
        f"in flight {status.in_flight} trajectories, {status.buffered} buffered",
    ]
    if len(status.nodes) > 1:
        lines += [f"on {node}: {', '.join(names)}" for node, names in sorted(status.nodes.items())]
    lines += [f"model     {model.line}" for model in status.models]
    lines += [f"silent    {name} does not answer" for name in status.silent]
    for env, phases in sorted(status.counts.items()):
        said = ", ".join(f"{count} in {phase}" for phase, count in sorted(phases.items()))
        lines.append(f"          {env}: {said}")
    return lines


def rates_table(rates: Mapping[str, tuple[float | None, float | None]]) -> Table:
    """Table of held-out pass rates before and after training, by environment."""
    shown = Table(title="held-out pass rate", title_justify="left")
    shown.add_column("environment")
    for column in ("before", "after"):
        shown.add_column(column, justify="right")
    for env, both in sorted(rates.items()):
        shown.add_row(env, *("-" if rate is None else f"{rate:.2f}" for rate in both))
    return shown


def evaluations_table(rows: Sequence[EvaluationRow]) -> Table:
    """Table of held-out pass rates with their 95 % intervals, by version: the best and the last ones."""
    best = best_of(rows)
    last = rows[-SHOWN_EVALUATIONS:]
    kept = [*([best] if best is not None and best not in last else []), *last]
    shown = Table(title="held-out pass rate (95 % interval)", title_justify="left")
    for column in ("version", "lag", "mean"):
        shown.add_column(column, justify="right")
    envs = sorted({env for row in kept for env in row.env})[:MOST_ENVS]
    for env in envs:
        shown.add_column(env, justify="right")
    shown.add_column("")
    for row in kept:
        rates = (row.env.get(env) for env in envs)
        cells = ("-" if rate is None else str(rate) for rate in (row.mean, *rates))
        shown.add_row(str(row.version), str(row.lag), *cells, "best" if row == best else "")
    return shown


def waiting_table(rows: tuple[Waiting, ...]) -> Table:
    """Table of what each trajectory waits for, the most suspicious first."""
    shown = Table(title="waiting for", title_justify="left")
    for column in ("trajectory", "environment", "version", "phase", "at"):
        shown.add_column(column, overflow="fold")
    for column in ("seconds", "p99", "left"):
        shown.add_column(column, justify="right")
    shown.add_column("then")
    for row in rows:
        style = "bold" if row.p99 is not None and row.seconds > row.p99 else ""
        shown.add_row(
            row.id,
            row.env,
            _version(row.version),
            row.phase,
            row.at or "-",
            f"{row.seconds:.1f}",
            "-" if row.p99 is None else f"{row.p99:.1f}",
            f"{row.left:.0f}",
            row.then,
            style=style,
        )
    return shown


def suspect(status: Status) -> str:
    """Name what to look at first in a run in which nothing moves."""
    if status.silent:
        return f"{' and '.join(status.silent)} did not answer (see the logs)"
    return sentence(status.waiting[0]) if status.waiting else "no episode is in progress"


def sentence(row: Waiting) -> str:
    """One row as plain text."""
    usual = "" if row.p99 is None else f" (99 of 100 take less than {row.p99:.1f} s)"
    at = f" at {row.at}" if row.at else ""
    return (
        f"{row.id} ({row.env}, version {_version(row.version)}) in {row.phase}{at} for "
        f"{row.seconds:.0f} s{usual}, {row.then} in {row.left:.0f} s"
    )


def _version(version: int | None) -> str:
    return "-" if version is None else str(version)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
