"""The trackers of one run: who they are by its settings, and when each begins and ends.

Notifications begin first, so that they tell of a run that does not come to play; the others once the folder
is where the run begins or goes on. At the end all have the same seconds to take the rest.
"""

import os
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from rl.dashboard.trajectory_counts import ask
from rl.record.run_folder import RunFolder
from rl.trackers.tracker import Order
from rl.trackers.tracker_process import TrackerProcess

# For all trackers to take what they have not taken by the end of the run.
CLOSE_SECONDS = 30.0
# Least time for one of them where the others took it all.
LEAST_SECONDS = 1.0


def _unheard(sentence: str) -> None:
    """For who wants no warning."""


class Trackers:
    """The trackers of one run; none where all are switched off."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None] = _unheard) -> None:
        """say: hears one warning of each tracker, if there is one."""
        self.folder = folder
        self.say = say
        self.processes: dict[str, TrackerProcess] = {}
        self._started = False

    @property
    def names(self) -> list[str]:
        """Names of the trackers that are on, notifications apart."""
        config = self.folder.config
        silent = os.environ.get("WANDB_MODE") == "disabled"
        wandb = (config.wandb.enabled or "wandb" in config.trackers.use) and not silent
        others = [name for name in config.trackers.use if name != "wandb"]
        return [*(["wandb"] if wandb else []), *others]

    def begin(self) -> None:
        """Start the notifications, before anything else of the run."""
        if self.folder.config.notify.enabled:
            self._start("notify", Order("notify", str(self.folder.path.resolve())))

    def start(self) -> None:
        """Start the trackers: they follow what is written from where this part of the run begins."""
        if self._started:
            return
        self._started = True
        path = self.folder.path
        for name in self.names:
            known = path / "wandb.id"
            resumed = known.exists() if name == "wandb" else self.folder.begins > 0
            order = Order(
                tracker=name,
                folder=str(path.resolve()),
                metrics=self.folder.begins,
                evaluations=_size(path / "evaluations.jsonl"),
                row=_last_row(path),
                resumed=resumed,
                id=_wandb_id(known) if name == "wandb" else "",
            )
            self._start(name, order)

    def look(self) -> None:
        """Hear whether all follow still; called where a line was written. Waits for nobody."""
        self.start()
        for process in self.processes.values():
            process.look()

    def close(self) -> None:
        """Let all take the rest, for a while."""
        for process in self.processes.values():
            process.end_input()
        end = time.monotonic() + CLOSE_SECONDS
        for process in self.processes.values():
            left = end - time.monotonic()
            process.close(CLOSE_SECONDS if left > CLOSE_SECONDS - 0.5 else max(left, LEAST_SECONDS))

    def _start(self, name: str, order: Order) -> None:
        self.processes[name] = TrackerProcess(order, self.say)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _last_row(folder: Path) -> int:
    """The last row of the index that an earlier part has written."""
    try:
        [(last,)] = ask(folder, "select coalesce(max(rowid), 0) from trajectories") or [(0,)]
    except sqlite3.Error:
        return 0
    return int(last)


def _wandb_id(file: Path) -> str:
    """The id of the run at W&B: that of its earlier part, or a new one."""
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    id = uuid.uuid4().hex[:8]
    file.write_text(f"{id}\n", encoding="utf-8")
    return id
