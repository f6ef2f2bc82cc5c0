"""The display of a run: a live view in a terminal, plain lines elsewhere, a table at the end.

In: the stages of a run, and how far each is. Out: text on a console, and as lines in a file. Every line says
how long the stage at hand still takes, from its own rate, or from its usual duration until that is known.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rl.samples.metrics import per_env

# Usual seconds of the quickstart's stages on two cores: the first guess at a time left, before a stage has a
# rate. The time of training is that of its steps.
COLD_START_SECONDS, ENGINES_SECONDS, EVALUATION_SECONDS, STEP_SECONDS = 75.0, 25.0, 10.0, 5.0
# Plain output is silent no longer than this in a part that is counted.
SILENT_SECONDS = 60.0


class TimeLeft:
    """Estimates when one stage ends.

    A stage that outlasts its usual duration is taken to need a quarter more of what it took so far.
    """

    def __init__(self, usual: float | None = None) -> None:
        self._begin = self._since = time.monotonic()
        self._before, self._usual = 0, usual
        self._end: float | None = None

    def restart(self, done: int) -> None:
        """Count from here on: what came before was done at another rate."""
        self._since, self._before = time.monotonic(), done

    def count(self, done: int, total: int) -> None:
        """Take the rate since the count began."""
        if done > self._before:
            spent = time.monotonic() - self._since
            self.set(spent / (done - self._before) * (total - done))

    def set(self, seconds: float) -> None:
        """Take an estimate that is made elsewhere."""
        self._end = time.monotonic() + seconds

    @property
    def seconds(self) -> float | None:
        """Seconds left; None where nothing is known."""
        now = time.monotonic()
        if self._end is not None:
            return max(0.0, self._end - now)
        if self._usual is None:
            return None
        spent = now - self._begin
        return self._usual - spent if spent < self._usual else spent / 4

    @property
    def share(self) -> float | None:
        """The part of the stage that is over, 0 to 1; None where nothing is known."""
        if (left := self.seconds) is None:
            return None
        spent = time.monotonic() - self._begin
        return spent / max(1e-9, spent + left)

    def __str__(self) -> str:
        """Such as "left 0:32", or "left about 0:40" before there is a rate; "" where nothing is known."""
        if (left := self.seconds) is None:
            return ""
        return f"left {'' if self._end is not None else 'about '}{_clock(left)}"


class _Terminal(Console):
    """A console whose reader may go (`dorado train … | head`, a closed terminal): the run goes on."""

    def on_broken_pipe(self) -> None:
        """Print no more. What Python still holds for the reader goes nowhere."""
        self.quiet = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


class Progress:
    """Reports stages, cold-start updates, learner steps and the final table."""

    def __init__(self, console: Console | None = None, log: Path | None = None) -> None:
        """log: a file that gets every line too, also where a live view does not show it."""
        self._log: Console | None = None
        if log is not None:
            self._log = Console(
                file=log.open("a", encoding="utf-8", errors="replace"), width=160, highlight=False
            )
        self.console = console or _Terminal(highlight=False)
        self.start = time.monotonic()
        self.first_step: float | None = None
        self.steps_before = 0  # of an earlier part of the run
        self.stage_text = ""
        self.left = TimeLeft()
        self.rows: list[tuple[str, RenderableType]] = []
        self._counting = ""
        self._said = self.start
        # Drawn inside of the live view, beside the table of the last step.
        self._bars = Bars(
            BarColumn(30), TextColumn("{task.description}", markup=False), auto_refresh=False
        )
        self._bar = self._bars.add_task("", total=None)
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(
                console=self.console, get_renderable=self._render, refresh_per_second=4
            )

    def __enter__(self) -> "Progress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
        if self._log is not None:
            # On a full disk what was not written is known by now.
            with suppress(OSError):
                self._log.file.close()

    def stage(self, text: str, *, usual: float | None = None) -> None:
        """Begin a stage of the run, such as `engines: starting 2`. usual: seconds that it takes usually."""
        self.stage_text, self.left, self._counting = text, TimeLeft(usual), ""
        self._bars.reset(self._bar, total=None, description="")
        self._line(text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._line(text)
        if self.live is not None:
            self.live.console.print(text, markup=False)

    def end(self, text: str) -> None:
        """Print the last line of a run that ends before its end: nothing is left to wait for."""
        self.left = TimeLeft()
        self.note(text)

    def updates(self, stage: str, step: int, steps: int, loss: float) -> None:
        """An update of the cold start."""
        self.count(stage, step, steps, f"loss {loss:.3f}")

    def count(self, what: str, done: int, total: int, remark: str = "") -> None:
        """So many of a part of this stage are done; plain output says the first, every tenth part, and one a
        minute.

        A part that follows another in its stage, such as updates after demonstrations, has its own rate.
        """
        if what != self._counting:
            self._counting = what
            self.left.restart(done)
        self.left.count(done, total)
        text = f"{done}/{total}{f'  {remark}' if remark else ''}"
        self._bars.update(self._bar, completed=done, total=total, description=text)
        silent = time.monotonic() - self._said
        if done == 1 or done % max(1, total // 10) == 0 or silent >= SILENT_SECONDS:
            self._line(f"{what}: {text}")

    def episodes(self, done: int, total: int) -> None:
        """Held-out episodes played so far; they begin with the stage."""
        self.left.count(done, total)
        text = f"{done}/{total} episodes"
        self._bars.update(self._bar, completed=done, total=total, description=text)

    def step(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """A learner step: rewards per environment, tokens/s, staleness, time left."""
        now = time.monotonic()
        if self.first_step is None:
            self.first_step, self.steps_before = now - metrics["time/total_seconds"], step - 1
        self.left.set((now - self.first_step) / (step - self.steps_before) * (steps - step))
        rewards = per_env(metrics, "rollout", "reward")
        rewards.pop("all", None)
        said = "  ".join(f"{env} {value:.2f}" for env, value in rewards.items())
        line = (
            f"step {step}/{steps}  reward {said}  {metrics['time/tokens_per_second']:,.0f} tok/s  "
            f"staleness {metrics['staleness/mean']:.1f}  |dlogp| {_parity(metrics, 0)}"
        )
        self.stage_text = "training"
        self._bars.update(self._bar, completed=step, total=steps, description="steps")
        self.rows = [("step", f"{step} of {steps}"), *_step_rows(rewards, metrics)]
        self._line(line)

    def results(self, before: Mapping[str, float], after: Mapping[str, float], folder: str) -> None:
        """Print the table of held-out pass rates, and where the run is."""
        table = Table(title="held-out pass rate", title_justify="left")
        for column in ("environment", "before", "after"):
            table.add_column(column, justify="left" if column == "environment" else "right")
        for env in sorted(before.keys() | after.keys()):
            table.add_row(env, _rate(before.get(env)), _rate(after.get(env)))
        if before and after:
            table.add_section()
            table.add_row("mean", _rate(_mean(before)), _rate(_mean(after)))
        if self.live is not None:
            self.live.stop()
            self.live = None
        for console in (self.console, self._log):
            if console is not None:
                console.print(table)
                console.print(f"run folder: {folder}")

    def _render(self) -> Group:
        [task] = self._bars.tasks
        if not task.description and (share := self.left.share) is not None:
            # Nothing is counted in this stage: its bar is its time.
            self._bars.update(self._bar, completed=share, total=1.0)
        head, rows = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
        elapsed = _clock(time.monotonic() - self.start)
        head.add_row(Text("dorado", style="bold"), Text(f"{self.stage_text}  [{elapsed}]"))
        head.add_row("", Text(str(self.left), style="dim"))
        for name, value in self.rows if self.stage_text == "training" else ():
            rows.add_row(Text(name, style="dim"), value)
        return Group(head, self._bars.make_tasks_table([task]), rows)

    def _line(self, text: str) -> None:
        """Print a line where there is no live view, and in the file."""
        self._said = time.monotonic()
        stamp = ", ".join(
            part for part in (_clock(self._said - self.start), str(self.left)) if part
        )
        for console in (self.console if self.live is None else None, self._log):
            if console is not None:
                console.print(f"[{stamp}] {text}", markup=False, soft_wrap=True)


def _step_rows(
    rewards: Mapping[str, float], metrics: Mapping[str, float]
) -> list[tuple[str, RenderableType]]:
    """The table of a step in the live view."""
    rows: list[tuple[str, RenderableType]] = []
    for env, value in rewards.items():
        both = Table.grid(padding=(0, 1))
        both.add_row(ProgressBar(total=1.0, completed=value, width=20), f"{value:.2f}")
        rows.append((f"reward {env}", both))
    stale = f"{metrics['staleness/mean']:.2f} mean, {metrics['staleness/max']:.0f} max"
    return [
        *rows,
        ("tokens/s", f"{metrics['time/tokens_per_second']:,.0f}"),
        ("staleness", stale),
        ("engine-learner", f"|dlogp| {_parity(metrics, 1)}"),
    ]


def _parity(metrics: Mapping[str, float], digits: int) -> str:
    """The mean gap of engine and learner, and of which share of the tokens it is, where not of all."""
    text = f"{metrics.get('parity/mean_abs_dlogp', float('nan')):.{digits}e}"
    share = metrics.get("parity/share", 1.0)
    return text if share > 0.995 else f"{text} of {share:.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _mean(rates: Mapping[str, float]) -> float:
    return sum(rates.values()) / len(rates)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
