"""A run folder with trajectories, written by what writes a run's."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fakes import group_report, scored

from rl.config import RunConfig
from rl.record.run_folder import LearnedWriter, RunFolder, TrajectoryWriter
from rl.samples.group import member_report
from rl.samples.samples import Dropped
from rollout.trajectory import ScoredTrajectory
from trainer.sample import TokenScores


class RecordedRun:
    """A run that is being written; `close` ends it."""

    def __init__(self, runs: Path, name: str = "demo", **more: Any) -> None:
        """more: further settings."""
        settings = {"name": name, "runs_dir": str(runs), "model": {"init": {}}, **more}
        config = RunConfig.model_validate({**settings, "env": [{"id": "calculator"}]})
        self.folder = RunFolder(config)
        self.path = self.folder.path
        self._writer = TrajectoryWriter(self.path, "controller-0")

    def group(
        self,
        name: str,
        members: Sequence[ScoredTrajectory],
        *,
        env: str = "calculator",
        split: str = "train",
        dropped: str = "",
    ) -> None:
        """A finished group; dropped: the reason why it was filtered."""
        owned = [replace(m, trajectory=replace(m.trajectory, group=name, env=env)) for m in members]
        reports = [member_report(one, *self._writer.write(one)) for one in owned]
        report = group_report(env, reports)
        ids = report.sample_ids
        if dropped:
            report = replace(report, dropped=(Dropped(ids, "filtered", dropped),), sample_ids=())
        self.folder.index(replace(report, spec=replace(report.spec, id=name)), split)

    def rewards(self, name: str, *rewards: float, **changes: Any) -> None:
        """A finished group of short trajectories with these rewards, named NAME.0, NAME.1, …"""
        self.group(name, [scored(f"{name}.{n}", r) for n, r in enumerate(rewards)], **changes)

    def learned(
        self,
        id: str,
        step: int,
        advantages: list[float],
        learner_logprobs: list[float | None],
        entropies: list[float],
        experts: list[list[list[int]]] | None = None,
    ) -> None:
        """What the learner made of it."""
        scores = TokenScores(
            id, advantages, learner_logprobs, entropies, np.array(experts or [], dtype=np.int16)
        )
        self.folder.learned(step, LearnedWriter(self.path).write(step, [scores]))

    def execute(self, statement: str, *values: Any) -> None:
        """Change the index as something else would."""
        with sqlite3.connect(self.path / "trajectories.sqlite") as index:
            index.execute(statement, values)
        index.close()

    def keep_tokenizer(self, checkpoint: str) -> None:
        self.folder.keep_tokenizer(checkpoint)

    def close(self) -> None:
        self.folder.close()
