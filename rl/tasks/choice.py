"""Chooses the next task of an environment among candidates, by what a group of it is expected to teach.

    stream of tasks -> `candidates` of them -> the most valuable one, or at `explore` of the draws the next

Candidates that are passed over have been drawn from the stream all the same: of tasks that come again (a
data set, a pack), they come with the next pass; of an endless generator, never. A second group of a task
that is in flight is worth half, a third one a third: so groups in flight spread as a greedy allotment of a
budget by value does (LongCat-Flash-Thinking-2601, arXiv 2601.16725, section 3.3.1).

Each group's forecast is made as the group begins and kept until it has ended; `Calibration` holds the two
against each other. Draws by chance are unbiased, and so say what would be without a choice. Left out: which
environment is next (`rl.tasks.mixture`), so no choice changes the environments' shares.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.env import Env, Task
from envs.text import told
from rl.env_table import ChoiceConfig, EnvTable
from rl.record.position import ChoiceState
from rl.samples.group import GroupReport
from rl.samples.metrics import passed
from rl.tasks.calibration import Calibration, ForecastOutcome
from rl.tasks.forecast import BetaForecaster, Forecast, Forecaster, TaskOutcome, key_of
from rl.tasks.graph_forecast import GraphForecaster
from rl.tasks.streams import OutOfTasks
from rl.tasks.task_features import encoded
from trainer.advantage import all_equal

Chosen = Literal["chance", "value"]


@dataclass(frozen=True)
class Begun:
    """A group in flight: its task, how it was drawn, and what was forecast."""

    task: Task
    chosen: str
    forecast: Forecast
    base_rate: float


class TaskChoice:
    """One environment's choice of tasks."""

    def __init__(self, config: ChoiceConfig, forecaster: Forecaster, seed: str) -> None:
        """seed: of the draws by chance, which depend on how many there have been and on nothing else."""
        self.config = config
        self.forecaster = forecaster
        self.seed = seed
        self.draws = 0
        self.begun: dict[str, Begun] = {}
        self.in_flight: Counter[str] = Counter()
        self.calibration = Calibration()

    def next(self, draw: Callable[[], Task]) -> tuple[Task, Chosen]:
        """Draw the next task, as it will be played, and say how. Raises what `draw` does."""
        self.draws += 1
        if random.Random(f"{self.seed}/{self.draws}").random() < self.config.explore:
            return draw(), "chance"
        candidates = [draw() for _ in range(self.config.candidates)]
        forecasts = self.forecaster.forecast(candidates)
        self.calibration.candidates(forecasts)
        shares = [
            f.value / (1 + self.in_flight[key_of(task)])
            for task, f in zip(candidates, forecasts, strict=True)
        ]
        return candidates[shares.index(max(shares))], "value"

    def begin(self, group: str, task: Task, chosen: str) -> None:
        """A group begins with this task."""
        (forecast,) = self.forecaster.forecast([task])
        self.begun[group] = Begun(task, chosen, forecast, self.forecaster.base_rate)
        self.in_flight[key_of(task)] += 1

    def forget(self, group: str) -> Begun:
        """A group came to no end that says anything of its task."""
        begun = self.begun.pop(group)
        key = key_of(begun.task)
        self.in_flight[key] -= 1
        if not self.in_flight[key]:
            del self.in_flight[key]
        return begun

    def end(self, report: GroupReport) -> dict[str, object]:
        """A group has ended. Returns what was forecast and what came, for the record; {} where no episode was
        judged."""
        begun = self.forget(report.spec.id)
        judged = [member for member in report.members if member.judged]
        if not judged:
            return {}
        passes = sum(passed(m.rewards, m.reward) for m in judged)
        version = min((min(m.versions) for m in judged if m.versions), default=0)
        outcome = ForecastOutcome(
            chosen=begun.chosen,
            forecast=begun.forecast.rate,
            base_rate=begun.base_rate,
            known=begun.forecast.known,
            passes=passes,
            episodes=len(judged),
            zero_variance=all_equal([m.reward for m in judged]),
        )
        self.calibration.add(outcome)
        by_chance = begun.chosen == "chance"
        self.forecaster.learn(begun.task, TaskOutcome(passes, len(judged), version, by_chance))
        return asdict(outcome)

    def state(self) -> ChoiceState:
        """For a run that is to go on; the calibration begins anew there."""
        return self.forecaster.state(self.draws)

    def restore(self, state: ChoiceState) -> None:
        """Go on from there, where the forecast is of the same kind; else with nothing known."""
        self.draws = state.draws
        if state.forecast == self.config.forecast:
            self.forecaster.restore(state)


def make_choice(table: EnvTable, env: Env, group_size: int, seed: int) -> TaskChoice | None:
    """The choice that an environment's settings ask for; None for tasks as they come."""
    config = table.choice
    if config is None:
        return None

    def features(task: Task) -> NDArray[np.float64]:
        try:
            return encoded({"task": env.task_features(task), "noise": task.noise})
        except Exception as error:  # an author's code
            raise OutOfTasks(
                f"environment {table.label!r} cannot tell the features of a task: {told(error)}"
            ) from error

    match config.forecast:
        case "beta":
            forecaster = BetaForecaster(config.forget, group_size)
        case "flgp":
            forecaster = GraphForecaster(config.forget, group_size, features)
    return TaskChoice(config, forecaster, f"{seed}/{table.label}")
