"""What the user sees: a live display in a terminal, plain lines elsewhere, a table at the end."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class Progress:
    """Reports stages, cold-start updates, learner steps and the final table."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.start = time.monotonic()
        self.first_step: float | None = None
        self.steps_before = 0  # of an earlier part of the run
        self.stage_text = ""
        self.bar_text = ""
        self.rows: list[tuple[str, ...]] = []
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

    def stage(self, text: str) -> None:
        """A new stage of the run, such as `engines: starting 2`."""
        self.stage_text, self.bar_text = text, ""
        if self.live is None:
            self._line(text)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._line(text) if self.live is None else self.live.console.print(text, markup=False)

    def updates(self, stage: str, step: int, steps: int, loss: float) -> None:
        """An update of the cold start; plain output says every tenth part."""
        self.bar_text = f"{_bar(step, steps)} {step}/{steps}  loss {loss:.3f}"
        if self.live is None and step % max(1, steps // 10) == 0:
            self._line(f"{stage}: {step}/{steps}  loss {loss:.3f}")

    def episodes(self, done: int, total: int) -> None:
        """Held-out episodes played so far."""
        self.bar_text = f"{_bar(done, total)} {done}/{total} episodes"

    def step(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """A learner step: rewards per environment, tokens/s, staleness, time left."""
        now = time.monotonic()
        if self.first_step is None:
            self.first_step, self.steps_before = now - metrics["time/total_seconds"], step - 1
        left = (now - self.first_step) / (step - self.steps_before) * (steps - step)
        rewards = {
            key.split("/")[1]: value
            for key, value in metrics.items()
            if key.startswith("rollout/") and key.endswith("/reward") and "/all/" not in key
        }
        said = "  ".join(f"{env} {value:.2f}" for env, value in rewards.items())
        line = (
            f"step {step}/{steps}  reward {said}  {metrics['time/tokens_per_second']:,.0f} tok/s  "
            f"staleness {metrics['staleness/mean']:.1f}  "
            f"|dlogp| {metrics.get('parity/mean_abs_dlogp', float('nan')):.0e}  left {_clock(left)}"
        )
        self.stage_text = "training"
        self.bar_text = f"{_bar(step, steps)} {line}"
        self._remember(step, steps, rewards, metrics, left)
        if self.live is None:
            self._line(line)

    def results(self, before: Mapping[str, float], after: Mapping[str, float], folder: str) -> None:
        """The table of held-out pass rates, and where the run is."""
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
        self.console.print(table)
        self.console.print(f"run folder: {folder}")

    def _remember(
        self,
        step: int,
        steps: int,
        rewards: Mapping[str, float],
        metrics: Mapping[str, float],
        left: float,
    ) -> None:
        self.rows = [
            ("step", f"{step} of {steps}, {_clock(left)} left"),
            *(
                (f"reward {env}", f"{_bar(value, 1, 20)} {value:.2f}")
                for env, value in rewards.items()
            ),
            ("tokens/s", f"{metrics['time/tokens_per_second']:,.0f}"),
            (
                "staleness",
                f"{metrics['staleness/mean']:.2f} mean, {metrics['staleness/max']:.0f} max",
            ),
            ("engine-learner", f"|dlogp| {metrics.get('parity/mean_abs_dlogp', float('nan')):.1e}"),
        ]

    def _render(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        elapsed = _clock(time.monotonic() - self.start)
        grid.add_row(Text("dorado", style="bold"), f"{self.stage_text}  [{elapsed}]")
        if self.rows and self.stage_text == "training":
            for name, value in self.rows:
                grid.add_row(Text(name, style="dim"), value)
        elif self.bar_text:
            grid.add_row("", self.bar_text)
        return grid

    def _line(self, text: str) -> None:
        self.console.print(
            f"[{_clock(time.monotonic() - self.start)}] {text}", markup=False, soft_wrap=True
        )


def _bar(done: float, total: float, width: int = 30) -> str:
    filled = round(width * min(1.0, max(0.0, done / total))) if total else 0
    return "━" * filled + "╌" * (width - filled)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _mean(rates: Mapping[str, float]) -> float:
    return sum(rates.values()) / len(rates)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
