"""Weights & Biases: online with a key, else offline in the run folder (`wandb sync`).

The run's id lies in wandb.id, so that a run that goes on is the same one there too. What W&B has of steps
that are undone it keeps: it takes a step once. Whoever kills its helper process, the order begins anew as an
offline run, which has every line (`rl.trackers.process`).
"""

import os
from typing import TYPE_CHECKING

import psutil

from rl.trackers.tracker import Ended, Evaluated, Line, News, RunFacts

if TYPE_CHECKING:
    from wandb import Run

# Seconds for W&B to answer at first.
INIT_SECONDS = 30.0


class HelperGone(Exception):
    """W&B's own process has died."""


class WandbTracker:
    """One run at W&B. Raises what W&B raises, and HelperGone."""

    hears = frozenset({Line, Evaluated})

    def __init__(self, run: RunFacts) -> None:
        order = run.order
        mode = "offline" if order.offline else os.environ.get("WANDB_MODE") or None
        # W&B reads the variable itself, and refuses one that is empty.
        os.environ.pop("WANDB_MODE", None)
        import wandb

        self._wandb = wandb
        if mode is None and not wandb.login(prompt=False):
            mode = "offline"
        self._run: Run = wandb.init(
            id=order.id,
            resume="allow" if order.resumed else None,
            project=run.wandb.project,
            entity=run.wandb.entity,
            name=run.name,
            mode=mode,  # pyright: ignore[reportArgumentType]
            dir=order.folder,
            config=dict(run.config),
            settings=wandb.Settings(silent=False, console="off", init_timeout=INIT_SECONDS),
        )
        self._step = 0

    def take(self, news: News) -> None:
        """Log a step's numbers and histograms, or an evaluation's table."""
        match news:
            case Line():
                self._step = news.step
                histograms = {k: self._wandb.Histogram(v) for k, v in news.histograms.items()}
                self._run.log({**news.values, **histograms}, step=news.step)
            case Evaluated() if news.samples:
                rows = [sample.row() for sample in news.samples]
                table = self._wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
                # W&B takes no step before its last one.
                step = max(self._step, news.learner)
                self._run.log({f"evaluation/{news.when}": table}, step=step)
            case _:
                pass

    def look(self) -> None:
        """Raise HelperGone where W&B's own process has died."""
        if not psutil.Process().children():
            raise HelperGone("its helper process has died")

    def end(self, ended: Ended) -> None:
        """Give W&B the summary, and wait until it has everything."""
        for key, value in ended.summary.items():
            self._run.summary[key] = value
        self._run.finish(exit_code=1 if ended.outcome == "failed" else 0)
        self._wandb.teardown()
