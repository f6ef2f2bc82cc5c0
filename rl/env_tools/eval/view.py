"""The view of an evaluation while it runs: pass rate so far, phases, the last trajectories."""

import time
from collections import Counter, deque
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from envs.message import JsonObject
from rl.samples.metrics import passed
from rollout.episode import Episode
from rollout.trajectory import ScoredTrajectory

_LAST = 8


class EvalView:
    """A live display in a terminal, a line per episode elsewhere."""

    def __init__(self, title: str, total: int, console: Console | None = None) -> None:
        self.title = title
        self.total = total
        self.console = console or Console(highlight=False)
        self.start = time.monotonic()
        self.text = ""
        self.playing: dict[str, Episode] = {}
        self.done = self.judged = self.full = 0
        self.last: deque[ScoredTrajectory] = deque(maxlen=_LAST)
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> "EvalView":
        self.note(self.title)
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def stage(self, text: str) -> None:
        """Say what happens now."""
        self.text = text

    def begins(self, episode: Episode) -> None:
        """An episode is being played."""
        self.playing[episode.id] = episode

    def ends(self, episode: Episode, scored: ScoredTrajectory) -> None:
        """It is over and judged, or has failed."""
        del self.playing[episode.id]
        self.done += 1
        if scored.trajectory.judged:
            self.judged += 1
            self.full += passed(scored.rewards, scored.reward)
        self.last.append(scored)
        if self.live is None:
            self.note(f"{self.done}/{self.total}  {self._rate()}  {_line(scored)}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def results(self, found: JsonObject, folder: Path) -> None:
        """The end."""
        for name, value in found.items():
            if value not in ("", None):
                self.note(f"{name.replace('_', ' ')}: {value}")
        self.note(f"trajectories: {folder}")

    def render(self) -> Group:
        """The live display."""
        phases = Counter(episode.clock.current for episode in self.playing.values())
        doing = "  ".join(f"{name} {count}" for name, count in phases.most_common()) or self.text
        head = Table.grid(padding=(0, 2))
        head.add_row(Text("episodes", style="dim"), f"{self.done}/{self.total}", doing)
        elapsed = f"{time.monotonic() - self.start:.0f} s"
        head.add_row(Text("passed", style="dim"), self._rate(), elapsed)
        table = Table(show_edge=False, pad_edge=False)
        for column in ("id", "turns", "stop", "reward", "last said"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for one in self.last:
            t = one.trajectory
            reward = f"{one.reward:g}" if t.judged else "-"
            table.add_row(t.id, f"{len(t.turns)}", t.stop_reason, reward, Text(_last_said(one)))
        return Group(head, "", table)

    def _rate(self) -> str:
        return f"{self.full}/{self.judged}" + (
            f" ({self.full / self.judged:.0%})" if self.judged else ""
        )


def _line(scored: ScoredTrajectory) -> str:
    t = scored.trajectory
    reward = f"reward {scored.reward:g}" if t.judged else t.fault
    return f"{t.id}  {len(t.turns)} turns  {t.stop_reason}  {reward}"


def _last_said(scored: ScoredTrajectory) -> str:
    t = scored.trajectory
    return " ".join((t.turns[-1].text if t.judged and t.turns else t.fault).split())[:100]
