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

from rl.dashboard.growing_lines import parse
from rl.dashboard.series import number
from rl.trackers.tracker import Ended, Evaluated, Line, News, Order, RunFacts, Sample

BINS = 30


class TensorboardTracker:
    """Writes one run's event file."""

    hears = frozenset({Line, Evaluated})

    def __init__(self, run: RunFacts) -> None:
        order = run.order
        self._writer = EventFileWriter(str(_folder(run)), flush_secs=10)
        if order.resumed and order.read is None:
            # Undo what an earlier part has written of steps that metrics.jsonl does not have any more.
            start, step = SessionLog(status=SessionLog.START), last_step(run.folder, order) + 1
            self._add(Event(step=step, wall_time=time.time(), session_log=start))
        self._text("config", json.dumps(run.config, indent=2), 0)

    def take(self, news: News) -> None:
        """Write a step's scalars and histograms, or an evaluation's table."""
        match news:
            case Line():
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


def last_step(folder: Path, order: Order) -> int:
    """The last step that metrics.jsonl has of the parts before this one; -1 where it has none."""
    with (folder / "metrics.jsonl").open("rb") as file:
        records = map(parse, file.read(order.metrics).splitlines())
        steps = [number(record.get("step")) for record in records if record]
    return int(max((step for step in steps if step is not None), default=-1))


def _folder(run: RunFacts) -> Path:
    """The folder of the event files: one of this run's own, where another run has one of its name."""
    if not (given := run.trackers.tensorboard.folder):
        return run.folder / "tensorboard"
    known = run.folder / "tensorboard.folder"
    if run.order.resumed and known.exists():
        return Path(known.read_text(encoding="utf-8").strip())
    folder, number = Path(given) / run.name, 1
    while not run.order.resumed and folder.exists():
        number += 1
        folder = Path(given) / f"{run.name}-{number}"
    known.write_text(f"{folder.resolve()}\n", encoding="utf-8")
    return folder


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
