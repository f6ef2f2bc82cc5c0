"""Which task comes next: the environments' task streams, mixed by weight.

Deterministic in (seed, settings): the mix is the smooth weighted round robin of nginx, so any prefix
of the stream is as close to the asked-for shares as whole groups allow.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from envs.env import Env, Split, Task
from rl.config import EnvTable


class OutOfTasks(Exception):
    """An environment's stream of tasks ended."""


class TaskStream:
    """An endless stream of (environment's label, task) of one split."""

    def __init__(self, tables: Sequence[EnvTable], envs: Sequence[Env], split: Split, seed: int):
        self.weights = {table.label: table.weight for table in tables}
        self.again: deque[tuple[str, Task]] = deque()
        self.credit = dict.fromkeys(self.weights, 0.0)
        self.streams: dict[str, Iterator[Task]] = {
            table.label: env.tasks(split, seed) for table, env in zip(tables, envs, strict=True)
        }

    def next(self) -> tuple[str, Task]:
        """The next task and the label of its environment; those put back come first."""
        if self.again:
            return self.again.popleft()
        for label, weight in self.weights.items():
            self.credit[label] += weight
        label = max(self.credit, key=lambda name: self.credit[name])
        self.credit[label] -= sum(self.weights.values())
        task = next(self.streams[label], None)
        if task is None:
            raise OutOfTasks(f"environment {label!r} has no more tasks: tasks() has to be endless")
        return label, task

    def put_back(self, label: str, task: Task) -> None:
        """A task is to be played anew."""
        self.again.append((label, task))
