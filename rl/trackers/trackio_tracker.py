"""Trackio: a local database (`trackio show`), or what its own variables name (TRACKIO_SPACE_ID, …)."""

import os
import warnings
from collections import deque

from rl.trackers.tracker import Ended, Evaluated, Line, News, RunFacts


class TrackioTracker:
    """One run of a Trackio project. Trackio warns where it fails; such a warning is raised."""

    hears = frozenset({Line, Evaluated})

    def __init__(self, run: RunFacts) -> None:
        settings = run.trackers.trackio
        if settings.folder:
            os.environ["TRACKIO_DIR"] = settings.folder
        import trackio

        self._trackio = trackio
        self._failures: deque[str] = deque()
        warnings.showwarning = self._note
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        self._run = trackio.init(
            project=settings.project,
            name=run.name,
            config=dict(run.config),
            resume="allow" if run.order.resumed else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._step = 0

    def take(self, news: News) -> None:
        """Log a step's numbers and histograms, or an evaluation's table."""
        match news:
            case Line():
                self._step = news.step
                histograms = {
                    key: self._trackio.Histogram(numbers, num_bins=30)
                    for key, numbers in news.histograms.items()
                }
                self._run.log({**news.values, **histograms}, step=news.step)
            case Evaluated() if news.samples:
                table = self._trackio.Table(
                    columns=[*news.samples[0].row()],
                    data=[[*sample.row().values()] for sample in news.samples],
                )
                self._run.log({f"evaluation/{news.when}": table}, step=news.learner)
            case _:
                pass

    def look(self) -> None:
        """Raise what Trackio has warned of."""
        if self._failures:
            raise RuntimeError(self._failures[0])

    def end(self, ended: Ended) -> None:
        """Log the end, and write what is queued."""
        numbers = {
            f"summary/{key}": value
            for key, value in ended.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._run.log({**numbers, "summary/outcome": ended.outcome}, step=self._step)
        self._run.finish()
        self.look()

    def _note(self, message: Warning | str, *_: object, **__: object) -> None:
        if "trackio" in str(message).lower():
            self._failures.append(str(message))
