"""Which tasks there are: every environment's stream, at every difficulty that is asked for.

Deterministic in (seed, settings): the n-th task of an environment at a difficulty is the same in every run,
so that a run that goes on needs no more than how many were drawn.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from envs.env import Env, Split, Task
from envs.text import told
from rl.env_table import EnvTable


class OutOfTasks(Exception):
    """An environment's stream of tasks ended."""


class TaskStreams:
    """Endless streams of tasks of one split, one per environment and difficulty."""

    def __init__(self, tables: Sequence[EnvTable], envs: Sequence[Env], split: Split, seed: int):
        self.envs = {table.label: env for table, env in zip(tables, envs, strict=True)}
        self.split: Split = split
        self.seed = seed
        self.streams: dict[tuple[str, int], Iterator[Task]] = {}
        self.drawn: Counter[tuple[str, int]] = Counter()

    def next(self, label: str, difficulty: int = 0) -> Task:
        """The next task of an environment; difficulty: 0 is what its own settings say.

        Raises OutOfTasks, also where the environment cannot make one."""
        try:
            task = self._draw(label, difficulty)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an author's code
            raise OutOfTasks(f"environment {label!r} cannot make a task: {told(error)}") from error
        if task is None:
            raise OutOfTasks(f"environment {label!r} has no more tasks: tasks() has to be endless")
        self.drawn[label, difficulty] += 1
        return task

    def _draw(self, label: str, difficulty: int) -> Task | None:
        if (label, difficulty) not in self.streams:
            stream = self._begin(label, difficulty)
            # What an earlier part of the run has drawn is passed over.
            skip = self.drawn[label, difficulty]
            self.streams[label, difficulty] = itertools.islice(stream, skip, None)
        task = next(self.streams[label, difficulty], None)
        if task is not None:
            _ = task.id  # its data are plain JSON, or this says what is not
        return task

    def _begin(self, label: str, difficulty: int) -> Iterator[Task]:
        env = self.envs[label]
        if difficulty:
            env = type(env)(env.config.model_copy(update={"difficulty": difficulty}))
        return env.tasks(self.split, self.seed)
