"""TensorBoard: event files in the run folder, or in another one (`tensorboard --logdir runs`).

Scalars and histograms of each step, a table of held-out trajectories of each evaluation. The steps that a
resumed run undoes are purged there.
"""

# protoc makes these classes as the module is imported.
# pyright: reportAttributeAccessIssue=false

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rl.trackers.tracker import Ended, Evaluated, Line, News, RunFacts, Sample

BINS = 30


class TensorboardTracker:
    """Writes one run's event file."""

    hears = frozenset({Line, Evaluated})

    def __init__(self, run: RunFacts) -> None:
        given = run.trackers.tensorboard.folder
        folder = Path(given) / run.name if given else run.folder / "tensorboard"
        self._resumed = run.order.resumed
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        self._text("config", json.dumps(run.config, indent=2), 0)

    def take(self, news: News) -> None:
        """Write a step's scalars and histograms, or an evaluation's table."""
        match news:
            case Line():
                self._purge(news.step)
                values = [Summary.Value(tag=k, simple_value=v) for k, v in news.values.items()]
                values += [
                    Summary.Value(tag=key, histo=_histogram(numbers))
                    for key, numbers in news.histograms.items()
                ]
                self._add(Event(step=news.step, wall_time=news.time, summary=Summary(value=values)))
            case Evaluated():
                self._text(f"evaluation/{news.when}", _table(news.samples), news.learner)
            case _:
                pass
        self._writer.flush()

    def look(self) -> None:
        """Nothing to look for: it writes files."""

    def end(self, ended: Ended) -> None:
        """Write the summary, and close the file."""
        self._text("summary", json.dumps(ended.summary, indent=2), 0)
        self._writer.close()

    def _purge(self, step: int) -> None:
        """Undo what an earlier part has written of the steps from here on."""
        if self._resumed:
            self._resumed = False
            start = SessionLog(status=SessionLog.START)
            self._add(Event(step=step, wall_time=time.time(), session_log=start))

    def _text(self, tag: str, text: str, step: int) -> None:
        """Write text as TensorBoard's text plugin reads it."""
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        value = Summary.Value(
            tag=f"{tag}/text_summary", metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        self._add(Event(step=step, wall_time=time.time(), summary=Summary(value=[value])))

    def _add(self, event: Event) -> None:
        self._writer.add_event(event)


def _histogram(numbers: Sequence[float]) -> HistogramProto:
    values = np.asarray(numbers, dtype=np.float64)
    counts, edges = np.histogram(values, bins=BINS)
    return HistogramProto(
        min=values.min(),
        max=values.max(),
        num=len(values),
        sum=values.sum(),
        sum_squares=float(np.square(values).sum()),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )


def _table(samples: Sequence[Sample]) -> str:
    """A table in Markdown; TensorBoard shows it as one."""
    rows = [sample.row() for sample in samples]
    head = list(rows[0]) if rows else ["no trajectories"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")
