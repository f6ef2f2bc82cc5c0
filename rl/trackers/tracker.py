"""The interface of a tracker, and what it is told: plain records, read from the run folder.

A tracker is made in a process of its own (`rl.trackers.process`), which calls these methods in the order in
which a run writes. Whatever it raises ends that process with one warning, and never the run. A new tracker is
a class with these methods and an entry in TRACKERS and in `rl.tracker_config`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from rl.dashboard.trajectory_record import TrajectoryView
from rl.record.status import Outcome, Status
from rl.tracker_config import NotifyConfig, TrackersConfig, WandbConfig


@dataclass(frozen=True)
class Order:
    """A part of a run, for one tracker.

    folder: the run folder. metrics, evaluations: the bytes of metrics.jsonl and evaluations.jsonl at which
    the part begins; row: the last row of the index before it. resumed: there was an earlier part. id: of the
    run at W&B. offline: W&B's run stays in the folder. read: the last row that an earlier process of this
    part has read; None where there was no such process.
    """

    tracker: str
    folder: str
    metrics: int = 0
    evaluations: int = 0
    row: int = 0
    resumed: bool = False
    id: str = ""
    offline: bool = False
    read: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """The run that a tracker is told of. config: its resolved settings, as config.toml has them."""

    folder: Path
    name: str
    runs_dir: Path
    config: Mapping[str, object]
    trackers: TrackersConfig
    wandb: WandbConfig
    notify: NotifyConfig
    order: Order


@dataclass(frozen=True)
class Line:
    """One line of metrics.jsonl. time: unix seconds.

    histograms: of the trajectories that the step trained on, e.g. {"trained/all/reward": (0.0, 1.0)}.
    """

    step: int
    time: float
    values: Mapping[str, float]
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One held-out trajectory of an evaluation's table. versions: such as "3" or "3-5"."""

    id: str
    env: str
    task: str
    reward: float | None
    stop_reason: str
    turns: int | None
    tokens: int | None
    versions: str
    transcript: str

    def row(self) -> dict[str, object]:
        """The row of a table."""
        return dict(vars(self))


@dataclass(frozen=True)
class Evaluated:
    """A line of evaluations.jsonl, with a bounded sample of its trajectories. learner: step at its end."""

    when: str
    step: int
    learner: int
    rates: Mapping[str, object]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Episode:
    """A trajectory that has ended, with its record. start: of its group, unix seconds."""

    env: str
    split: str
    start: float
    outcome: str
    versions: str
    turns: int
    tokens: int
    record: TrajectoryView


@dataclass(frozen=True)
class Ended:
    """How a run has ended. said: its last sentence. summary: summary.json; empty where there is none."""

    outcome: Outcome
    said: str
    summary: Mapping[str, object]


News = Line | Evaluated | Episode | Status


class Tracker(Protocol):
    """One tracker of one run. hears: the kinds of news that it is told; the others are not even read."""

    hears: frozenset[type]

    def take(self, news: News) -> None:
        """Take what the run has written."""
        ...

    def look(self) -> None:
        """Called every second. Raises where what it sends to is gone."""
        ...

    def end(self, ended: Ended) -> None:
        """Take how the run has ended, and send what is left."""
        ...


# What a line on a tracker's standard output begins with that is a sentence for the run.
SAYS = "says: "
# What a line begins with that is a position in the run folder (`Position`), as JSON.
AT = "at: "


def say(sentence: str) -> None:
    """Tell the run what has gone wrong, in one line; called in the tracker's process."""
    print(f"{SAYS}{sentence}", flush=True)


@dataclass(frozen=True)
class Position:
    """How far a tracker's process has told what the run wrote: the next one may go on from there.

    Bytes of metrics.jsonl and evaluations.jsonl, and the last row of the index.
    """

    metrics: int
    evaluations: int
    read: int


def tell(position: Position) -> None:
    """Tell the run a position; called in the tracker's process."""
    print(f"{AT}{json.dumps(asdict(position))}", flush=True)


# Trackers that show a state rather than write a log: a later process reads all of its part again.
STATES = frozenset(("prometheus", "notify"))
# Where each tracker's class is; it is imported in the tracker's process only.
TRACKERS = {
    "wandb": "rl.trackers.wandb_tracker:WandbTracker",
    "tensorboard": "rl.trackers.tensorboard_tracker:TensorboardTracker",
    "trackio": "rl.trackers.trackio_tracker:TrackioTracker",
    "mlflow": "rl.trackers.mlflow_tracker:MlflowTracker",
    "prometheus": "rl.trackers.prometheus_tracker:PrometheusTracker",
    "otel": "rl.trackers.otel_tracker:OtelTracker",
    "notify": "rl.trackers.notifier:Notifier",
}
